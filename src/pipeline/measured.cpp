// What enters a block is the same for all linears in it: the model's own activations. From there on each replaced linear has a way of its own
// through the blocks behind it, so that the whole costs half of (linears × blocks) passes of a block.
#include "pipeline/measured.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "evaluate/quality.h"
#include "pipeline/moments.h"

namespace lquant::pipeline {
using json = nlohmann::json;

namespace {

// A prediction is right within a factor of two or three. What lies outside is noise: a divergence that cannot be told from none.
constexpr double kMostCorrection = 4;

model::Tensors computed(const model::Model& model, model::Tensors tensors) {
  auto made = model::dense_tensors(model, std::move(tensors));
  for (auto& [name, tensor] : made)
    if (mx::issubdtype(tensor.dtype(), mx::floating)) tensor = mx::astype(tensor, model.compute_dtype());
  return made;
}

class Measurement {
 public:
  Measurement(const model::Model& model, const Rows& rows, const Sensitivities& estimated, const codec::Format& format, RunFolder& run, Log& log)
      : model_(model), spec_(model.spec()), rows_(rows), format_(format), run_(run), blocks_(static_cast<int>(spec_.blocks.size())),
        progress_(log, "measuring sensitivities", static_cast<std::int64_t>(estimated.kl.size())) {
    for (const auto& [path, costs] : estimated.kl)
      if (std::isfinite(estimated.of(path, format))) wanted_.push_back(path);
  }

  std::map<std::string, double> all();

 private:
  using States = std::vector<mx::array>;
  bool wants(const std::string& path) const { return std::find(wanted_.begin(), wanted_.end(), path) != wanted_.end(); }
  States embedded(const model::Tensors& tensors) const;
  States pass(int block, const model::Tensors& tensors, States states, const model::Observer* observer = nullptr) const;
  evaluate::Answers answers(const States& states, const model::Tensors& final_tensors) const;
  /// The weight's values after range search by the moments of what it reads.
  mx::array replaced(const std::string& path, const mx::array& weight) const;
  /// The figure of one linear: from an earlier process, or of what `measure` gives.
  void figure(const std::string& path, const std::function<evaluate::Answers()>& measure);

  const model::Model& model_;
  const model::ModelSpec& spec_;
  const Rows& rows_;
  const codec::Format format_;
  RunFolder& run_;
  const int blocks_;
  Progress progress_;
  std::vector<std::string> wanted_;
  std::optional<evaluate::Answers> teacher_;
  std::map<std::string, double> found_;
  Moments moments_;
};

Measurement::States Measurement::embedded(const model::Tensors& tensors) const {
  States states;
  for (const auto& ids : rows_.ids) {
    states.push_back(model::embed(spec_, tensors, {}, ids, model_.compute_dtype()));
    states.back().eval();
  }
  return states;
}

Measurement::States Measurement::pass(int block, const model::Tensors& tensors, States states, const model::Observer* observer) const {
  for (std::size_t b = 0; b < states.size(); ++b) {
    model::Context context;
    context.segments = rows_.segments[b];
    context.observer = observer;
    states[b] = model::block(spec_, block, tensors, {}, states[b], context);
    states[b].eval();
  }
  return states;
}

evaluate::Answers Measurement::answers(const States& states, const model::Tensors& final_tensors) const {
  auto head = model::head(spec_, final_tensors, {}, model_.compute_dtype());
  return {std::move(head), [this, states, final_tensors](std::size_t b) {
            const auto h = model::final_norm(spec_, final_tensors, states[b]);
            return mx::reshape(h, {-1, h.shape(-1)});
          }};
}

mx::array Measurement::replaced(const std::string& path, const mx::array& weight) const {
  const auto moment = moments_.find(path);
  const auto packed = codec::range_search(weight, format_, moment == moments_.end() ? std::nullopt : std::optional(moment->second)).packed;
  return codec::dequantize(packed, format_, weight.dtype());
}

void Measurement::figure(const std::string& path, const std::function<evaluate::Answers()>& measure) {
  const auto unit = "measured-" + path;
  if (const auto done = run_.load(unit)) {
    found_[path] = done->meta.at("kl");
    progress_.skip(1);
    return;
  }
  found_[path] = evaluate::measure(measure(), &*teacher_, rows_.batches).kl;
  run_.save(unit, {}, {{"kl", found_[path]}});
  progress_.advance(1, fmt::format("{} {:.5f}", path, found_[path]));
  if (InterruptGuard::requested()) throw Interrupted("[pipeline] interrupted; give the same command again to continue");
}

std::map<std::string, double> Measurement::all() {
  const auto block = [&](int i) { return computed(model_, model_.load_block(i, model_.stored_dtype())); };
  const auto rest = [&](int from, States states) {
    for (int i = from; i < blocks_; ++i) states = pass(i, block(i), std::move(states));
    return states;
  };
  const auto embedding = computed(model_, model_.load_embedding(model_.stored_dtype()));
  const auto last = computed(model_, model_.load_final(model_.stored_dtype()));
  const auto before = embedded(embedding);
  const auto behind = rest(0, before);
  teacher_ = answers(behind, last);
  for (const auto& x : behind) add_moment(moments_, spec_.head ? spec_.head->path : spec_.embedding.path, model::final_norm(spec_, last, x), nullptr);

  if (wants(spec_.embedding.path))
    figure(spec_.embedding.path, [&] {
      const auto name = spec_.embedding.path + ".weight";
      auto first = embedding, end = last;
      first.insert_or_assign(name, replaced(spec_.embedding.path, embedding.at(name)));
      if (spec_.tied()) end.insert_or_assign(name, first.at(name));
      return answers(rest(0, embedded(first)), end);
    });
  if (spec_.head && wants(spec_.head->path))
    figure(spec_.head->path, [&] {
      auto end = last;
      end.insert_or_assign(spec_.head->path + ".weight", replaced(spec_.head->path, last.at(spec_.head->path + ".weight")));
      return answers(behind, end);
    });
  auto states = before;
  for (int i = 0; i < blocks_; ++i) {
    const auto tensors = block(i);
    const model::Observer observer = [&](const std::string& path, const mx::array& input, const mx::array* offsets) {
      add_moment(moments_, path, input, offsets);
    };
    auto next = pass(i, tensors, states, &observer);
    for (const auto* linear : spec_.blocks[i].linears())
      if (wants(linear->path))
        figure(linear->path, [&] {
          auto changed = tensors;
          const auto name = linear->path + ".weight";
          changed.insert_or_assign(name, replaced(linear->path, tensors.at(name)));
          return answers(rest(i + 1, pass(i, changed, states)), last);
        });
    states = std::move(next);
    moments_.clear();
  }
  progress_.finish();
  return found_;
}

}  // namespace

Sensitivities measure_sensitivities(const model::Model& model, const Rows& rows, Sensitivities estimated, const codec::Format& format, RunFolder& run,
                                    Log& log) {
  if (estimated.measured) return estimated;
  const auto found = Measurement(model, rows, estimated, format, run, log).all();
  for (const auto& [path, kl] : found) {
    const double predicted = estimated.of(path, format);
    if (!(predicted > 0)) continue;
    const double correction = std::clamp(kl / predicted, 1 / kMostCorrection, kMostCorrection);
    for (double& cost : estimated.kl.at(path)) cost *= correction;
  }
  estimated.measured = true;
  return estimated;
}

}  // namespace lquant::pipeline
