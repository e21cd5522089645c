// Every step is a command of its own with a folder of its own inside the run folder, so that each can be killed and continued as it can alone.
// Between them stands one judge: the divergence on rows that no step has seen.
#include "pipeline/auto.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "evaluate/streamed.h"
#include "pipeline/awq.h"
#include "pipeline/block_run.h"
#include "pipeline/dwq.h"
#include "pipeline/expect.h"
#include "pipeline/folds.h"
#include "pipeline/gptq.h"
#include "pipeline/output.h"
#include "run/run_folder.h"
#include "pipeline/self_data.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr double kDefaultBits = 4;
// Rows that judge. With 512 tokens each their KL has a standard error of a few in a hundred; of differences between steps, which see the same rows,
// much less.
constexpr int kJudges = 48;
// Rows for the steps that need statistics alone: more change little (docs/methods/gptq.md).
constexpr int kStatisticRows = 128;
// Passes of block-wise training (docs/methods/gptq.md), and the widths that it is for.
constexpr int kBlockPasses = 4, kBlockBits = 3;

json options_of(const AutoRun& o) {
  json options{{"widths", o.widths},
               {"groups", o.groups},
               {"tie", o.tie},
               {"measure", o.measure},
               {"steps", o.steps},
               {"num_samples", o.num_samples},
               {"sequence_length", o.sequence_length},
               {"seed", o.seed}};
  record_budget(options, o.target, kDefaultBits, o.floors, o.ceilings);
  return options;
}

/// The first step but for its place and its rows.
DynamicRun allocation_of(const AutoRun& o) {
  DynamicRun r;
  r.model = o.model;
  r.widths = o.widths;
  r.groups = o.groups;
  r.tie = o.tie;
  r.floors = o.floors;
  r.ceilings = o.ceilings;
  r.measure = o.measure;
  r.target = o.target;
  r.followed = !o.steps.empty();
  if (!r.target.bits && !r.target.bytes && !r.target.kl) r.target.bits = kDefaultBits;
  return r;
}

bool has_low_bits(const plan::QuantPlan& plan) {
  return std::any_of(plan.formats.begin(), plan.formats.end(), [](const auto& entry) { return entry.second.bits <= kBlockBits; });
}

/// DWQ trains what has fewer than 8 bits.
bool has_trained_bits(const plan::QuantPlan& plan) {
  return std::any_of(plan.formats.begin(), plan.formats.end(), [](const auto& entry) { return entry.second.bits < 8; });
}

/// The run of one command.
class Auto {
 public:
  Auto(const AutoRun& options, const model::Model& model, const text::Tokenizer& tokenizer, run::RunFolder& run, const run::Context& context)
      : o_(options), model_(model), tokenizer_(tokenizer), run_(run), context_(context) {}

  void prepare_rows();
  void allocate();
  void improve();
  void write(const json& options);
  AutoResult result;

 private:
  fs::path folder(const std::string& step) const { return run_.step(step); }
  bool wants(const std::string& step) const { return std::find(o_.steps.begin(), o_.steps.end(), step) != o_.steps.end(); }
  /// Does a step unless it is done, judges what it made, and keeps that if it is the best so far.
  template <class Work>
  void try_step(const std::string& name, const Work& work);
  void judge(AutoStep& step);
  RowOptions statistic_rows() const { return {{folder("rows").string()}, std::min(o_.num_samples, kStatisticRows), o_.sequence_length, o_.seed}; }

  const AutoRun& o_;
  const model::Model& model_;
  const text::Tokenizer& tokenizer_;
  run::RunFolder& run_;
  const run::Context& context_;
  json manifest_;
  std::vector<calibration::Batch> judges_;
  std::optional<evaluate::Answers> teacher_;
  std::string best_;  ///< name of the step that made the best model
  double best_kl_ = INFINITY;
  plan::QuantPlan plan_;
};

/// Draws all rows once: the first of them judge, the others are for the steps, as token ids.
void Auto::prepare_rows() {
  if (!run_.has_step("rows")) {
    const int wanted = o_.num_samples + kJudges;
    std::vector<calibration::Example> examples;
    json manifest;
    if (o_.data == std::vector<std::string>{"self"}) {
      examples = self_examples(model_, tokenizer_, wanted, o_.sequence_length, o_.seed, run_, context_);
      manifest = {{"source", "self"}, {"seed", o_.seed}, {"rows", wanted}, {"max_tokens", o_.sequence_length}};
    } else {
      auto drawn = calibration::draw_examples({o_.data.begin(), o_.data.end()}, tokenizer_,
                                              {o_.sequence_length, false, model_.spec().vocab}, wanted, o_.seed);
      examples = std::move(drawn.examples), manifest = std::move(drawn.manifest);
    }
    if (examples.size() < 2) fail("pipeline", "the data has only {} rows; give at least 2, one to judge by", examples.size());
    if (static_cast<int>(examples.size()) < wanted)
      context_.line(fmt::format("{} rows were asked for ({} of them to judge by) and {} found; all of them are used", wanted, kJudges, examples.size()));
    const auto judges = std::min<std::size_t>(kJudges, std::max<std::size_t>(1, examples.size() / 8));
    const auto place = run_.begin_step("rows");
    fs::create_directories(place);
    std::string text[2];
    for (std::size_t i = 0; i < examples.size(); ++i) text[i < judges ? 0 : 1] += json{{"tokens", examples[i].tokens}}.dump() + "\n";
    write_file_atomically("pipeline", place / "judges.jsonl", text[0]);
    write_file_atomically("pipeline", place / "train.jsonl", text[1]);
    run_.finish_step("rows", manifest);
    run_.drop("self");
  }
  manifest_ = run_.step_meta("rows");
  const calibration::SourceOptions source{o_.sequence_length, false, model_.spec().vocab};
  judges_ = calibration::make_batches(calibration::read_examples(folder("rows") / "judges.jsonl", tokenizer_, source), 8, o_.sequence_length, false);
}

void Auto::judge(AutoStep& step) {
  const auto unit = "judged-" + step.name;
  if (const auto done = run_.load(unit)) {
    step.kl = done->meta.at("kl").get<double>(), step.kl_se = done->meta.at("kl_se").get<double>();
    return;
  }
  if (!teacher_) teacher_ = evaluate::stream_answers(model_, judges_);
  const auto files = checkpoint::Checkpoint::open(folder(step.name));
  const auto quality = evaluate::measure(evaluate::stream_answers(model::Model::open(files), judges_), &*teacher_, judges_);
  step.kl = quality.kl, step.kl_se = quality.kl_se;
  run_.save(unit, {}, {{"kl", quality.kl}, {"kl_se", quality.kl_se}});
}

template <class Work>
void Auto::try_step(const std::string& name, const Work& work) {
  AutoStep step{.name = name};
  const auto start = Clock::now();
  if (!run_.has_step(name)) {
    context_.line("step " + name);
    work(run_.begin_step(name));
    run_.finish_step(name);
  }
  judge(step);
  step.time = seconds_since(start);
  // A divergence that is not a number never falls.
  step.kept = *step.kl < best_kl_;
  context_.line(fmt::format("{}: KL {:.5f} ± {:.5f} on rows held out{}", name, *step.kl, *step.kl_se,
                        step.kept ? "" : fmt::format(", not below {:.5f}: undone", best_kl_)));
  if (step.kept) best_ = name, best_kl_ = *step.kl;
  result.steps.push_back(step);
  context_.check();
}

void Auto::allocate() {
  try_step("allocate", [&](const fs::path& output) {
    auto r = allocation_of(o_);
    r.output = output;
    r.rows = statistic_rows();
    dynamic_quant(r, context_);
  });
  if (best_.empty()) fail("pipeline", "the quantized model's divergence from the original is not a number; make the model float32 first");
  const auto files = checkpoint::Checkpoint::open(folder("allocate"));
  const auto made = model::Model::open(files);
  plan_ = plan::plan_of(made.spec(), made.formats(), files.config());
  const auto size = plan::size_of(model_.spec(), plan_, static_cast<int>(mx::size_of(model_.stored_dtype())));
  result.bits_per_weight = size.bits_per_weight(), result.bytes = size.bytes;
  const auto record = read_json("pipeline", folder("allocate") / "lquant.json");
  result.predicted_kl = record.at("quality").at("predicted_kl");
}

void Auto::improve() {
  const auto plan = folder("allocate") / "plan.json";
  if (wants("awq"))
    try_step("awq", [&](const fs::path& output) {
      AwqRun r;
      r.model = o_.model, r.output = output, r.plan = plan, r.rows = statistic_rows();
      r.format = plan_.base;
      awq(r, context_);
    });
  const auto scales = best_ == "awq" ? std::optional(folder("awq")) : std::nullopt;
  const auto with_gptq = [&](int passes) {
    return [&, passes](const fs::path& output) {
      GptqRun r;
      r.model = o_.model, r.output = output, r.plan = plan, r.rows = statistic_rows(), r.scaled = scales;
      r.format = plan_.base;
      r.training.epochs = passes;
      gptq(r, context_);
    };
  };
  if (wants("gptq")) try_step("gptq", with_gptq(0));
  const bool low = has_low_bits(plan_), trained = has_trained_bits(plan_);
  if (wants("blocks") && !low) context_.line(fmt::format("step blocks is left out: it is for {} bits and fewer, which no linear has", kBlockBits));
  if (wants("dwq") && !trained) context_.line("step dwq is left out: it is for fewer than 8 bits, which no linear has");
  if (wants("blocks") && low) try_step("blocks", with_gptq(kBlockPasses));
  if (wants("dwq") && trained)
    try_step("dwq", [&](const fs::path& output) {
      DwqRun r;
      r.model = o_.model, r.output = output, r.quantized_model = folder(best_);
      r.data = folder("rows").string(), r.num_samples = o_.num_samples, r.max_seq_length = o_.sequence_length, r.seed = o_.seed;
      dwq(r, context_);
    });
}

/// The best model under the output's name, with the record of the whole.
void Auto::write(const json& options) {
  const auto files = checkpoint::Checkpoint::open(folder(best_));
  const auto made = model::Model::open(files);
  ModelWriter writer(o_.output, model_);
  auto outer = made.load_embedding(made.stored_dtype());
  writer.add(outer);
  for (int i = 0; i < static_cast<int>(made.spec().blocks.size()); ++i) writer.add(made.load_block(i, made.stored_dtype()));
  auto last = made.load_final(made.stored_dtype());
  for (const auto& [name, tensor] : outer) last.erase(name);
  writer.add(last);
  writer.add_folds(read_folds(folder(best_), made.spec()));
  writer.add_plan(plan::quantization_block(made.spec(), plan_, true));
  auto steps = json::array();
  for (const auto& step : result.steps) steps.push_back({{"step", step.name}, {"kl", *step.kl}, {"kl_se", *step.kl_se}, {"kept", step.kept}});
  writer.finish(&plan_, made.stored_dtype(),
                {"auto", options, manifest_, {{"predicted_kl", result.predicted_kl}, {"held_out_kl", best_kl_}, {"steps", steps}}});
}

}  // namespace

json AutoResult::to_json() const {
  json out{{"bits_per_weight", bits_per_weight}, {"bytes", bytes}, {"predicted_kl", predicted_kl}, {"peak_memory", peak_memory()}};
  for (const auto& s : steps) {
    json step{{"step", s.name}, {"kept", s.kept}, {"seconds", s.time}};
    if (s.kl) step.update({{"kl", *s.kl}, {"kl_se", *s.kl_se}});
    if (s.expected_time > 0) step.update({{"expected_seconds", s.expected_time}, {"expected_memory", s.expected_memory}});
    out["steps"].push_back(step);
  }
  return out;
}

AutoResult auto_quantize(const AutoRun& o, const run::Context& context) {
  for (const auto& step : o.steps)
    if (step != "awq" && step != "gptq" && step != "blocks" && step != "dwq")
      throw UsageError(fmt::format("--steps {} is none of awq, gptq, blocks, dwq", step));
  if (context.ranks() > 1) throw UsageError("auto runs as one process; of its steps dwq alone can be shared among several");
  if (!o.dry_run) check_output(o.output);
  const auto checkpoint = checkpoint::Checkpoint::open(o.model);
  const auto model = model::Model::open(checkpoint);
  if (!model.formats().empty()) fail("pipeline", "{}: is quantized already; start from the original", o.model.string());
  check_source(model, context);
  check_target(allocation_of(o), model.spec(), static_cast<int>(mx::size_of(model.stored_dtype())));
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  const auto expected = expect(o, model);
  tell(expected, o, model, context);
  if (o.dry_run) {
    AutoResult result;
    result.steps = expected;
    return result;
  }
  const auto options = options_of(o);
  json identity{{"command", "auto"},
                {"options", options},
                {"model", checkpoint.fingerprint()},
                {"device", mx::default_device() == mx::Device::gpu ? "gpu" : "cpu"}};
  if (o.data != std::vector<std::string>{"self"})
    for (const auto& file : o.data) {
      const auto path = fs::is_directory(file) ? fs::path(file) / "train.jsonl" : fs::path(file);
      if (fs::is_regular_file(path)) identity["data"].push_back(sha256_file(path));
    }
  run::RunFolder run(o.output, identity, o.fresh, context);
  const run::Stop::Heeding heeding(context.stop());
  Auto work(o, model, tokenizer, run, context);
  work.prepare_rows();
  work.allocate();
  work.improve();
  work.write(options);
  run.remove();
  auto& result = work.result;
  for (auto& step : result.steps)
    for (const auto& e : expected)
      if (e.name == step.name) step.expected_time = e.expected_time, step.expected_memory = e.expected_memory;
  return result;
}

}  // namespace lquant::pipeline
