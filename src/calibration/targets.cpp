// Final hidden states are the smallest exact form of a teacher's answer: H numbers a token, from which one matrix product makes
// all V logits. The largest logits alone (as mlx_lm caches them) need no teacher afterwards, but lose the tail.
#include "calibration/targets.h"

#include <mlx/compile.h>
#include <mlx/mlx.h>

#include <map>
#include <tuple>

#include "base/error.h"
#include "base/files.h"
#include "checkpoint/sealed.h"
#include "kernels/primitive.h"
#include "model/stream.h"

namespace lquant::calibration {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

constexpr const char* kKeyFile = "targets.json";
// Boundary activations kept at once while a cache is made; a larger set is worked through in turns, reading the teacher again.
constexpr double kActivationBytes = 512e6;
// Validation rows' states kept in memory, enough for 32 rows of 2,048 tokens at a width of 1,024.
constexpr std::size_t kKeptBytes = 128'000'000;

mx::array take_rows(const mx::array& a, int begin, int end, int length) {
  const int width = a.shape(-1);
  return mx::reshape(mx::slice(a, {begin, 0, 0}, {end, length, width}), {-1, width});
}

class LiveTargets : public Targets {
 public:
  explicit LiveTargets(const model::Model& teacher)
      : spec_(teacher.spec()),
        tensors_(teacher.load_all()),
        formats_(teacher.formats()),
        dtype_(teacher.compute_dtype()),
        head_{mx::array(0), std::nullopt} {
    model::densify(tensors_, formats_, dtype_);
    head_ = model::head(spec_, tensors_, formats_, dtype_);
  }

  Target rows(const std::string& split, std::size_t index, const Batch& batch, int begin, int end) override {
    // Validation asks the same again and again.
    const auto key = std::make_tuple(index, begin, end);
    const bool keep = split == "valid";
    if (const auto it = kept_.find(key); keep && it != kept_.end()) return {it->second, std::nullopt, std::nullopt};
    const auto part = slice_rows(batch, begin, end);
    std::vector<mx::array> inputs{part.ids};
    if (const auto segments = part.borders()) inputs.push_back(*segments);
    const auto hidden = states(inputs);
    // Now, so that the student's graph never holds the teacher's. A device is not waited for.
    kernels::cpu_kernels() ? mx::eval(hidden) : mx::async_eval(hidden);
    if (keep && kept_bytes_ + hidden.nbytes() <= kKeptBytes) {
      kept_bytes_ += hidden.nbytes();
      kept_.insert({key, hidden});
    }
    return {hidden, std::nullopt, std::nullopt};
  }
  const model::Head& head() const override { return head_; }

 private:
  using Function = std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

  /// Of ids and, where there are any, segments [R, L]: hidden states [R·L, H]. A GPU's graph is traced once for each shape.
  mx::array states(const std::vector<mx::array>& inputs) {
    const Function run = [this](const std::vector<mx::array>& in) {
      model::Context context;
      if (in.size() > 1) context.segments = in[1];
      const auto hidden = model::hidden_states(spec_, tensors_, formats_, in[0], dtype_, context);
      return std::vector<mx::array>{mx::reshape(hidden, {-1, hidden.shape(-1)})};
    };
    if (mx::default_device() != mx::Device::gpu) return run(inputs)[0];
    auto& compiled = compiled_[inputs.size()];
    if (!compiled) compiled = mx::compile(run);
    return compiled(inputs)[0];
  }

  std::map<std::size_t, Function> compiled_;
  model::ModelSpec spec_;
  model::Tensors tensors_;
  model::Formats formats_;
  mx::Dtype dtype_;
  model::Head head_;
  std::map<std::tuple<std::size_t, int, int>, mx::array> kept_;
  std::size_t kept_bytes_ = 0;
};

fs::path batch_file(const TargetCache& cache, const std::string& split, std::size_t index) {
  return cache.folder / split / fmt::format("{:010d}.safetensors", index);
}

using Arrays = std::unordered_map<std::string, mx::array>;

/// What of the teacher turns states behind the last block into targets.
struct Outer {
  explicit Outer(const model::Model& teacher)
      : tensors(teacher.load_final()), head(model::head(teacher.spec(), tensors, teacher.formats(), teacher.compute_dtype())) {}
  model::Tensors tensors;
  model::Head head;
};

/// One batch's targets, as they are stored. `states` [R, L, H]: behind the last block.
Arrays targets_of(const TargetCache& cache, const model::Model& teacher, const Outer& outer, const mx::array& states) {
  const auto hidden = model::final_norm(teacher.spec(), outer.tensors, states, teacher.formats());
  if (cache.kind == TargetKind::hidden) return {{"hidden", hidden}};
  std::vector<mx::array> kept, where;  // row by row: full logits of a whole batch need not fit
  for (int r = 0; r < hidden.shape(0); ++r) {
    const auto row = mx::slice(hidden, {r, 0, 0}, {r + 1, hidden.shape(1), hidden.shape(2)});
    const auto logits = mx::astype(model::logits(outer.head, row), mx::float32);
    const int vocab = logits.shape(-1);
    const int k = std::min(cache.top_k, vocab);
    const auto order = mx::argpartition(logits, vocab - k, -1);
    auto indices = mx::astype(mx::slice(order, {0, 0, vocab - k}, {1, logits.shape(1), vocab}), mx::int32);
    auto values = mx::take_along_axis(logits, indices, -1);
    mx::eval(indices, values);
    where.push_back(indices);
    kept.push_back(values);
  }
  return {{"logits", mx::concatenate(kept, 0)}, {"indices", mx::concatenate(where, 0)}};
}

/// States behind the last block of batches begin … end, one block of the teacher in memory.
std::vector<mx::array> final_states(const model::Model& teacher, const std::vector<Batch>& batches, std::size_t begin, std::size_t end) {
  std::vector<mx::array> ids;
  model::StreamOptions options;
  for (std::size_t i = begin; i < end; ++i) {
    ids.push_back(batches[i].ids);
    options.segments.push_back(batches[i].segments);
  }
  return model::stream_blocks(teacher, ids, options);
}

class CachedTargets : public Targets {
 public:
  CachedTargets(const TargetCache& cache, const model::Model* teacher, std::function<void(const std::string&)> tell)
      : cache_(cache), teacher_(teacher), tell_(std::move(tell)) {
    if (cache.kind != TargetKind::hidden) return;
    if (!teacher) fail("calibration", "{}: cached hidden states need the teacher's head; name the teacher by --model", cache.folder.string());
    auto tensors = teacher->load_final();
    auto head = model::head(teacher->spec(), tensors, teacher->formats(), teacher->compute_dtype());
    mx::eval(head.weight);
    head_ = std::move(head);
  }

  Target rows(const std::string& split, std::size_t index, const Batch& batch, int begin, int end) override {
    const auto file = batch_file(cache_, split, index);
    const auto tensors = stored(file, batch);
    const auto part = [&](const char* name) -> std::optional<mx::array> {
      const auto it = tensors.find(name);
      if (it == tensors.end()) return std::nullopt;
      if (it->second.ndim() != 3 || it->second.shape(0) != batch.rows() || it->second.shape(1) != batch.length())
        fail("calibration", "{}: holds targets of another shape; remove the folder and compute the targets again", file.string());
      return take_rows(it->second, begin, end, batch.length());
    };
    return {part("hidden"), part("logits"), part("indices")};
  }
  const model::Head& head() const override { return *head_; }

 private:
  Arrays stored(const fs::path& file, const Batch& batch) {
    try {
      return checkpoint::read_sealed(file).tensors;
    } catch (const checkpoint::Damaged&) {
      if (!teacher_) fail("calibration", "{}: is not as it was written; remove it and compute the targets again (--targets-only)", file.string());
    }
    tell_(fmt::format("{}: is not as it was written; these targets are computed again", file.string()));
    const auto targets = targets_of(cache_, *teacher_, Outer(*teacher_), final_states(*teacher_, {batch}, 0, 1).front());
    try {
      checkpoint::write_sealed(file, targets, json::object());
    } catch (const Error&) {
      // A folder that cannot be written (or another rank, at the same): what is needed now is here all the same.
    }
    return targets;
  }

  TargetCache cache_;
  const model::Model* teacher_;
  std::function<void(const std::string&)> tell_;
  std::optional<model::Head> head_;
};

json full_key(const TargetCache& cache) {
  json key = cache.key;
  key["kind"] = cache.kind == TargetKind::hidden ? "hidden" : "topk";
  if (cache.kind == TargetKind::topk) key["top_k"] = cache.top_k;
  return json::parse(key.dump());
}

}  // namespace

std::unique_ptr<Targets> live_targets(const model::Model& teacher) { return std::make_unique<LiveTargets>(teacher); }

bool has_targets(const TargetCache& cache) {
  if (!fs::exists(cache.folder / kKeyFile)) {
    if (fs::exists(cache.folder) && !fs::is_empty(cache.folder))
      fail("calibration", "{}: not empty and not a folder of targets made by lquant; pick another --target-dir", cache.folder.string());
    return false;
  }
  const auto stored = read_json("calibration", cache.folder / kKeyFile);
  if (stored.value("key", json()) != full_key(cache))
    fail("calibration", "{}: holds targets of another model, other data or other options; pick another --target-dir or remove it",
         cache.folder.string());
  return stored.value("complete", false);
}

namespace {

/// An earlier run's, as it was written.
bool done_before(const TargetCache& cache, const std::string& split, std::size_t index) {
  const auto file = batch_file(cache, split, index);
  return fs::exists(file) && checkpoint::is_intact(file);
}

}  // namespace

void compute_targets(const TargetCache& cache, const model::Model& teacher, const std::vector<Batch>& train, const std::vector<Batch>& valid,
                     const std::function<void(std::int64_t, std::int64_t)>& progress) {
  std::error_code ec;
  fs::create_directories(cache.folder, ec);
  if (ec) fail("calibration", "{}: cannot be made ({}); pick another --target-dir", cache.folder.string(), ec.message());
  // The key comes first: a folder that holds anything without it is not ours.
  write_file_atomically("calibration", cache.folder / kKeyFile, json{{"key", full_key(cache)}, {"complete", false}}.dump(1) + "\n");
  for (const char* split : {"train", "valid"}) fs::create_directories(cache.folder / split);
  const Outer outer(teacher);
  const std::int64_t total = static_cast<std::int64_t>(train.size() + valid.size());
  std::int64_t done = 0;
  for (const auto& [split, batches] : {std::pair<std::string, const std::vector<Batch>&>{"valid", valid}, {"train", train}}) {
    for (std::size_t begin = 0; begin < batches.size();) {
      if (done_before(cache, split, begin)) {
        ++begin;
        progress(++done, total);
        continue;
      }
      std::size_t end = begin;
      double bytes = 0;
      while (end < batches.size() && !done_before(cache, split, end) && (end == begin || bytes < kActivationBytes)) {
        bytes += 4.0 * static_cast<double>(batches[end].ids.size()) * teacher.spec().hidden;
        ++end;
      }
      const auto states = final_states(teacher, batches, begin, end);
      for (std::size_t i = begin; i < end; ++i)
        checkpoint::write_sealed(batch_file(cache, split, i), targets_of(cache, teacher, outer, states[i - begin]), json::object());
      done += static_cast<std::int64_t>(end - begin);
      progress(done, total);
      begin = end;
    }
  }
  write_file_atomically("calibration", cache.folder / kKeyFile, json{{"key", full_key(cache)}, {"complete", true}}.dump(1) + "\n");
}

std::unique_ptr<Targets> cached_targets(const TargetCache& cache, const model::Model* teacher, std::function<void(const std::string&)> tell) {
  return std::make_unique<CachedTargets>(cache, teacher, std::move(tell));
}

}  // namespace lquant::calibration
