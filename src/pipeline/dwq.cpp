// From a command's options to a folder: every step reads what the one before it left in the run folder, or makes it.
#include "pipeline/dwq.h"

#include <mlx/distributed/ops.h>
#include <mlx/mlx.h>

#include <chrono>
#include <cstdlib>

#include "artifact/record.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/words.h"
#include "calibration/targets.h"
#include "pipeline/folds.h"
#include "pipeline/memory.h"
#include "pipeline/output.h"
#include "pipeline/rows.h"
#include "pipeline/self_data.h"
#include "pipeline/start.h"
#include "run/run_folder.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

// Rows that the range search looks at: 64 of 512 tokens were enough for a moment's diagonal (docs/methods/dwq.md).
constexpr std::size_t kStartTokens = 32768;
// How much work a kill may cost. The environment variable LQUANT_SAVE_SECONDS changes it: tests save after every step, and where
// machines are taken away at short notice a smaller number may be worth its writing.
constexpr double kSaveSeconds = 120;

double save_seconds() {
  const char* text = std::getenv("LQUANT_SAVE_SECONDS");
  if (!text) return kSaveSeconds;
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  if (end == text || *end != 0 || !(seconds >= 0)) throw UsageError(fmt::format("LQUANT_SAVE_SECONDS={} is no number of seconds", text));
  return seconds;
}
// A step frees and takes the same sizes again and again: what is cached beyond the largest few of them is only held.
constexpr double kTrainingCache = 1e9;
// In a process's first steps a GPU's libraries compile and choose kernels.
constexpr int kFirstSteps = 2;
// Codes that GPTQ has chosen answer for each other's errors: smaller steps keep more of that (docs/methods/gptq.md).
constexpr double kRateAfterGptq = 0.003;
// Self-sampled texts are no longer than this: sampling is slow, and short texts teach as well.
constexpr int kSelfTokens = 512;

json identity_of(const DwqRun& o, const std::string& model_hash, const std::string& student_hash, int ranks) {
  json options{{"bits", o.format.bits},
               {"group_size", o.format.group_size},
               {"num_samples", o.num_samples},
               {"num_valid", o.num_valid},
               {"max_seq_length", o.max_seq_length},
               {"seed", o.seed},
               {"batch_size", o.batch_size},
               {"data_path", utf8(fs::path(o.data).filename())},
               {"mask_prompt", o.mask_prompt},
               {"temperature", o.temperature},
               {"move_codes", o.move_codes},
               {"grad_checkpoint", o.grad_checkpoint}};
  options["learning_rate"] = o.learning_rate ? json(*o.learning_rate) : json("auto");
  if (o.target_dir) options["targets"] = o.targets;
  json identity{{"command", "dwq"}, {"model", model_hash}, {"ranks", ranks}, {"device", mx::default_device() == mx::Device::gpu ? "gpu" : "cpu"}};
  if (!student_hash.empty()) identity["quantized_model"] = student_hash;
  identity.update(options);
  return identity;
}

calibration::Split self_data(const DwqRun& o, const model::Model& teacher, const text::Tokenizer& tokenizer, run::RunFolder& run,
                             const run::Context& context) {
  const int longest = std::min(o.max_seq_length, kSelfTokens);
  const auto examples = self_examples(teacher, tokenizer, o.num_samples + o.num_valid, longest, o.seed, run, context);
  calibration::Split split;
  split.train.assign(examples.begin(), examples.begin() + o.num_samples);
  split.valid.assign(examples.begin() + o.num_samples, examples.end());
  split.manifest = {
      {"source", "self"}, {"seed", o.seed}, {"rows", {{"train", split.train.size()}, {"valid", split.valid.size()}}}, {"max_tokens", longest}};
  return split;
}

/// Batches whose tokens together suffice for the range search.
std::vector<calibration::Batch> first_batches(const std::vector<calibration::Batch>& batches) {
  std::vector<calibration::Batch> first;
  std::size_t tokens = 0;
  for (const auto& batch : batches) {
    if (tokens >= kStartTokens) break;
    first.push_back(batch);
    tokens += batch.ids.size();
  }
  return first;
}

void advise(const DwqRun& o, const run::Context& context) {
  if (o.format.bits >= 5 && !o.quantized_model)
    context.line(
        fmt::format("At {} bits the loss starts out so low that there is little to be gained; DWQ works best from 2 to 4 bits.", o.format.bits));
}

/// Saves and restores the trainer's and the student's state between steps.
class Journal {
 public:
  Journal(run::RunFolder& run, quantize::Student& student, quantize::DwqProgress& progress) : run_(run), student_(student), progress_(progress) {}

  bool restore() {
    // The state knows of the best one, which is a unit of its own: without it, training starts over and finds it again.
    if (!run_.has("best")) return false;
    const auto unit = run_.load("state");
    if (!unit) return false;
    progress_.step = unit->meta.at("step");
    progress_.best = unit->meta.at("best");
    progress_.start = unit->meta.at("start");
    progress_.best_step = unit->meta.at("best_step");
    progress_.losses = unit->meta.at("losses").get<std::vector<double>>();
    student_.restore(unit->tensors);
    return true;
  }
  void save() {
    run_.save("state", student_.state(),
              {{"step", progress_.step},
               {"best", progress_.best},
               {"start", progress_.start},
               {"best_step", progress_.best_step},
               {"losses", progress_.losses}});
    saved_ = Clock::now();
  }
  void save_if_due() {
    if (std::chrono::duration<double>(Clock::now() - saved_).count() >= every_) save();
  }

 private:
  run::RunFolder& run_;
  quantize::Student& student_;
  quantize::DwqProgress& progress_;
  double every_ = save_seconds();
  Clock::time_point saved_ = Clock::now();
};

/// Rank 0's state reaches the other ranks as a sum to which they add nothing.
void share_state(quantize::Student& student, quantize::DwqProgress& progress, const mx::distributed::Group& group) {
  if (group.size() == 1) return;
  const bool first = group.rank() == 0;
  const auto shared = [&](const mx::array& a) { return mx::distributed::all_sum(first ? a : mx::zeros_like(a), group); };
  auto state = student.state();
  std::vector<std::string> names;
  for (const auto& [name, tensor] : state) names.push_back(name);
  std::sort(names.begin(), names.end());
  for (const auto& name : names) {
    auto& tensor = state.at(name);
    // Sums of 16-bit latents are made as 32-bit integers, which every backend knows.
    tensor = tensor.dtype() == mx::uint16 ? mx::astype(shared(mx::astype(tensor, mx::int32)), mx::uint16) : shared(tensor);
    tensor.eval();
  }
  student.restore(state);
  auto numbers = shared(mx::array({static_cast<float>(progress.step), static_cast<float>(progress.best), static_cast<float>(progress.start),
                                   static_cast<float>(progress.best_step)}));
  numbers.eval();
  if (!first) {
    const auto* n = numbers.data<float>();
    progress.step = static_cast<int>(n[0]), progress.best = n[1], progress.start = n[2], progress.best_step = static_cast<int>(n[3]);
    progress.losses.assign(progress.step, 0);
  }
}

/// What the command line named, opened and checked against each other.
struct Inputs {
  checkpoint::Checkpoint teacher_files;
  model::Model teacher;
  std::optional<checkpoint::Checkpoint> student_files;  ///< of --quantized-model
  std::optional<model::Model> student;
  model::Folds folds;  ///< the student's scales, when awq has made it
  plan::QuantPlan plan;
  text::Tokenizer tokenizer;
  json identity;

  const model::Model& target() const { return student ? *student : teacher; }
};

Inputs open_inputs(const DwqRun& o, int ranks, const run::Context& context) {
  if (o.plan && o.quantized_model) throw UsageError("--plan and --quantized-model exclude each other: the quantized model has its formats already");
  const std::optional<json> overrides = o.plan ? std::optional(read_plan(*o.plan)) : std::nullopt;
  const auto teacher_files = model::open_checkpoint(o.model);
  Inputs in{teacher_files, model::Model::open(teacher_files), std::nullopt, std::nullopt, {}, {}, text::Tokenizer::open(teacher_files.files()), {}};
  check_positions(in.teacher.spec(), o.data == "self" ? std::min(o.max_seq_length, kSelfTokens) : o.max_seq_length, "--max-seq-length");
  if (o.quantized_model) {
    in.student_files = model::open_checkpoint(*o.quantized_model);
    in.student = model::Model::open(*in.student_files);
    if (in.student->formats().empty())
      fail("pipeline", "{}: is not quantized; give a quantized model to --quantized-model", o.quantized_model->string());
    if (in.student->spec().vocab != in.teacher.spec().vocab)
      fail("pipeline", "{}: has a vocabulary of {} and its teacher one of {}; give the model that it was made from to --model",
           o.quantized_model->string(), in.student->spec().vocab, in.teacher.spec().vocab);
    in.folds = read_folds(*o.quantized_model, in.teacher.spec());
    in.plan = plan::plan_of(in.student->spec(), in.student->formats(), in.student_files->config());
  } else {
    in.plan = plan::uniform_plan(in.teacher.spec(), o.format);
    if (overrides) plan::apply_overrides(in.plan, in.teacher.spec(), *overrides, o.plan->string());
    for (const auto& [path, why] : in.plan.dense) context.line(fmt::format("{} stays dense: {}", path, why));
  }
  check_source(in.target(), context);
  in.identity = identity_of(o, in.teacher_files.fingerprint(), in.student_files ? in.student_files->fingerprint() : "", ranks);
  if (overrides) in.identity["plan"] = *overrides;
  if (!in.folds.empty()) in.identity["scales"] = sha256_file(*o.quantized_model / kFoldFile);
  // The files' contents are what the result depends on, not where they lie.
  for (const auto& file : {fs::path(o.data), fs::path(o.data) / "train.jsonl", fs::path(o.data) / "valid.jsonl"})
    if (o.data != "self" && fs::is_regular_file(file)) in.identity["data"][utf8(file.filename())] = sha256_file(file);
  return in;
}

struct Data {
  json manifest;
  std::vector<calibration::Batch> train, valid;
};

Data read_data(const DwqRun& o, const Inputs& in, run::RunFolder& run, const run::Context& context) {
  const auto split = o.data == "self" ? self_data(o, in.teacher, in.tokenizer, run, context)
                                      : calibration::load_split(o.data, in.tokenizer, {o.max_seq_length, o.mask_prompt, in.teacher.spec().vocab},
                                                                o.num_samples, o.num_valid, o.seed);
  if (static_cast<int>(split.train.size()) < o.num_samples)
    context.line(fmt::format("{} rows were asked for and {} found; all of them are used", o.num_samples, split.train.size()));
  return {split.manifest, calibration::make_batches(split.train, o.batch_size, o.max_seq_length, o.mask_prompt),
          calibration::make_batches(split.valid, o.batch_size, o.max_seq_length, o.mask_prompt)};
}

/// The teacher at work, or its answers from --target-dir, which are made first where they are missing. Null after --targets-only.
std::unique_ptr<calibration::Targets> open_targets(const DwqRun& o, const Inputs& in, const Data& data, bool first, const run::Context& context) {
  if (!o.target_dir) return calibration::live_targets(in.teacher);
  const json key{{"model", in.teacher_files.fingerprint()}, {"data", data.manifest}, {"batch_size", o.batch_size},
                 {"max_seq_length", o.max_seq_length},      {"seed", o.seed},        {"mask_prompt", o.mask_prompt}};
  const calibration::TargetCache cache{*o.target_dir, key, o.targets == "topk" ? calibration::TargetKind::topk : calibration::TargetKind::hidden};
  if (!has_targets(cache)) {
    if (!first) fail("pipeline", "{}: holds no targets yet; make them by one process first (--targets-only)", o.target_dir->string());
    run::Progress progress(context.events(), "computing the teacher's targets", static_cast<std::int64_t>(data.train.size() + data.valid.size()));
    std::int64_t before = 0;
    calibration::compute_targets(cache, in.teacher, data.train, data.valid, [&](std::int64_t done, std::int64_t) {
      progress.advance(done - before);
      before = done;
      context.check();
    });
    progress.finish();
  }
  return o.targets_only ? nullptr : calibration::cached_targets(cache, &in.teacher, [&](const std::string& text) { context.warn(text); });
}

quantize::Student make_student(const DwqRun& o, const Inputs& in, const Data& data, run::RunFolder& run, const run::Context& context) {
  auto start =
      in.student ? in.student->load_all(in.student->stored_dtype()) : search_start(in.teacher, in.plan, first_batches(data.train), run, context);
  // The teacher's own weights tell on which side of a code each weight lies; a quantized teacher tells nothing of the kind.
  auto dense = o.move_codes && in.teacher.formats().empty() ? in.teacher.load_all(in.teacher.stored_dtype()) : model::Tensors{};
  // A student that awq has scaled has codes of scaled weights.
  if (!dense.empty() && !in.folds.empty()) fold_all(in.teacher.spec(), in.folds, dense, in.teacher.stored_dtype());
  return {in.target().spec(), in.plan.by_path(), std::move(start), dense, o.move_codes};
}

/// Whether lquant gptq has made the folder, as its record says.
bool made_by_gptq(const checkpoint::Checkpoint& folder) {
  const auto record = artifact::record_of(folder.files());
  return record.contains("command") && record.at("command") == "gptq";
}

quantize::DwqOptions settings_of(const DwqRun& o, const Inputs& in, std::size_t steps) {
  quantize::DwqOptions settings;
  settings.temperature = o.temperature;
  settings.code_rate = quantize::default_code_rate(static_cast<int>(steps));
  auto rate = o.learning_rate;
  if (!rate && in.student_files && made_by_gptq(*in.student_files)) rate = kRateAfterGptq;
  if (rate) {
    settings.code_rate *= static_cast<float>(*rate) / settings.scale_rate;
    settings.scale_rate = static_cast<float>(*rate);
  }
  settings.grad_checkpoint = o.grad_checkpoint;
  settings.micro_tokens = micro_tokens(in.teacher.spec());
  settings.compile = mx::default_device() == mx::Device::gpu;
  return settings;
}

/// Does work that all ranks do together. When one of them dies, the others' sums fail: they say so, and what is saved can be continued.
template <class Work>
void together(const run::Context& context, const Work& work) {
  try {
    work();
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& e) {
    if (context.ranks() == 1) throw;
    fail("pipeline",
         "rank {} cannot go on without the other processes of this run ({}); see what they say, then give the same command again to continue",
         context.rank(), e.what());
  }
}

/// Trains to the end, saving as it goes. Throws Interrupted, the state saved, when asked to stop.
DwqResult train(const DwqRun& o, const Inputs& in, const Data& data, quantize::Student& student, calibration::Targets& targets, run::RunFolder& run,
                const run::Context& context) {
  const auto group = context.group();
  const auto settings = settings_of(o, in, data.train.size());
  const CacheBound bound(kTrainingCache);
  quantize::DwqProgress progress;
  Journal journal(run, student, progress);
  if (group.rank() == 0) journal.restore();
  share_state(student, progress, group);
  quantize::DwqTrainer trainer(in.target().spec(), student, in.target().compute_dtype(), data.train, data.valid, targets, settings, group);
  context.line(fmt::format("training {} parameters of {} linears: {} steps of {} rows, learning rate {:.2g}, codes {}", student.trained_parameters(),
                           student.size(), trainer.steps(), o.batch_size, settings.scale_rate,
                           o.move_codes ? fmt::format("move by {:.2g}", settings.code_rate) : "fixed"));
  DwqResult result;
  int taken = 0;
  run::Progress bar(context.events(), "step", trainer.steps());
  bar.skip(progress.step);
  const auto report = [&](const quantize::DwqReport& now) {
    result.tokens += now.tokens;
    result.seconds += now.seconds;
    if (++taken > kFirstSteps) result.later_tokens += now.tokens, result.later_seconds += now.seconds;
    bar.advance(1, fmt::format("loss {:.4f}, {:.0f} tokens/s, peak {}", now.loss, result.tokens / result.seconds,
                               format_bytes(static_cast<double>(peak_use()))));
    if (now.validation)
      context.line(fmt::format("step {}/{}: validation KL {:.5f}{}", now.step, now.steps, *now.validation, now.best ? ", the best so far" : ""));
    const bool stop = context.stop().requested() && now.step < now.steps;
    stop ? journal.save() : journal.save_if_due();
    return !stop;
  };
  together(context, [&] {
    trainer.run(progress, report, [&] {
      if (progress.step == 0) context.line(fmt::format("before training: validation KL {:.5f}", progress.start));
      run.save("best", student.pack(), {{"step", progress.step}});
    });
  });
  if (progress.step < trainer.steps())
    throw Interrupted(
        fmt::format("[pipeline] interrupted after step {} of {}; give the same command again to continue", progress.step, trainer.steps()));

  const auto size = plan::size_of(in.target().spec(), in.plan, static_cast<int>(mx::size_of(in.target().stored_dtype())));
  result.start_kl = progress.start, result.best_kl = progress.best;
  result.steps = trainer.steps(), result.best_step = progress.best_step;
  result.bits_per_weight = size.bits_per_weight(), result.bytes = size.bytes;
  bar.finish(fmt::format("validation KL {:.5f} → {:.5f}, {:.3f} bits per weight", result.start_kl, result.best_kl, result.bits_per_weight));
  if (const auto words = quantize::diagnose(progress.losses, progress.start, progress.best); !words.empty()) context.warn(words);
  return result;
}

void write(const DwqRun& o, const Inputs& in, const Data& data, const DwqResult& result, run::RunFolder& run) {
  ModelWriter writer(o.output, in.target());
  writer.add(run.need("best").tensors);
  writer.add_folds(in.folds);
  json options = in.identity;
  for (const char* key : {"command", "model", "device"}) options.erase(key);
  writer.finish(
      &in.plan, in.target().stored_dtype(),
      {"dwq",
       options,
       data.manifest,
       {{"validation_kl_start", result.start_kl}, {"validation_kl", result.best_kl}, {"steps", result.steps}, {"best_step", result.best_step}}});
  run.remove();
}

}  // namespace

json DwqResult::to_json() const {
  return {{"validation_kl_start", start_kl},
          {"validation_kl", best_kl},
          {"steps", steps},
          {"best_step", best_step},
          {"tokens", tokens},
          {"seconds", seconds},
          {"tokens_per_second", seconds > 0 ? tokens / seconds : 0},
          {"later_tokens_per_second", later_seconds > 0 ? later_tokens / later_seconds : 0},
          {"bits_per_weight", bits_per_weight},
          {"bytes", bytes},
          {"peak_memory", peak_use()}};
}

DwqResult dwq(const DwqRun& o, const run::Context& context) {
  if (o.format.mode != codec::Mode::affine) throw UsageError("dwq trains scales and biases, which only the affine mode has; drop --q-mode");
  if (o.targets_only && !o.target_dir) throw UsageError("--targets-only needs --target-dir, the folder to write them to");
  if (!o.targets_only) check_output(o.output);
  save_seconds();  // a senseless value is refused before any work
  const bool first = context.rank() == 0;
  const auto in = open_inputs(o, context.ranks(), context);
  advise(o, context);
  advise_memory(in.teacher.spec(), in.plan, {o.batch_size, o.max_seq_length, o.grad_checkpoint, o.move_codes}, context);

  run::RunFolder run(o.targets_only ? *o.target_dir : o.output, in.identity, o.fresh, context, first);
  const run::Stop::Heeding heeding(context.stop());
  const auto data = read_data(o, in, run, context);
  const auto targets = open_targets(o, in, data, first, context);
  if (!targets) {
    run.remove();
    return {};
  }
  auto student = make_student(o, in, data, run, context);
  const auto result = train(o, in, data, student, *targets, run, context);
  if (first) write(o, in, data, result, run);
  return result;
}

}  // namespace lquant::pipeline
