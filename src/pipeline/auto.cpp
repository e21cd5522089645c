// Every step is a command of its own with a folder of its own inside the run folder, so that each can be killed and continued as it can alone.
// Between them stands one judge: the divergence on rows that no step has seen.
#include "pipeline/auto.h"
#include "pipeline/memory.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "evaluate/streamed.h"
#include "pipeline/awq.h"
#include "pipeline/block_run.h"
#include "pipeline/dwq.h"
#include "pipeline/expect.h"
#include "pipeline/expert_rows.h"
#include "pipeline/folds.h"
#include "pipeline/gptq.h"
#include "pipeline/output.h"
#include "pipeline/rows.h"
#include "pipeline/self_data.h"
#include "run/run_folder.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

// With 16-bit scales the formats to choose from have 2.25 to 9 bits per weight: 4 are a quarter of the way.
constexpr DefaultTarget kDefault{4, 0.25};
// Rows that judge. With 512 tokens each their KL has a standard error of a few in a hundred; of differences between steps, which see the same rows,
// much less.
constexpr int kJudges = 48;
// Passes of block-wise training (docs/methods/gptq.md), and the widths that it is for.
constexpr int kBlockPasses = 4, kBlockBits = 3;

json options_of(const AutoRun& o, const model::ModelSpec& spec) {
  json options{{"widths", o.widths},
               {"groups", o.groups},
               {"tie", o.tie},
               {"measure", o.measure},
               {"steps", o.steps},
               {"num_samples", o.num_samples},
               {"sequence_length", o.sequence_length},
               {"seed", o.seed}};
  if (has_routed_experts(spec)) options["expert_tokens"] = o.expert_tokens ? json(*o.expert_tokens) : json("auto");
  record_budget(options, o.target, o.floors, o.ceilings);
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
  return r;
}

bool has_low_bits(const plan::QuantPlan& plan) {
  return std::any_of(plan.formats.begin(), plan.formats.end(), [](const auto& entry) { return entry.second.bits <= kBlockBits; });
}

/// DWQ trains what has fewer than 8 bits.
bool has_trained_bits(const plan::QuantPlan& plan) {
  return std::any_of(plan.formats.begin(), plan.formats.end(), [](const auto& entry) { return entry.second.bits < 8; });
}

/// "gptq: KL 0.01234 ± 0.00056 on rows held out, 0.00210 ± 0.00030 lower than before: kept".
std::string verdict(const AutoStep& step) {
  if (!std::isfinite(step.kl->value)) return fmt::format("{}: its KL on rows held out is not a number: undone", step.name);
  auto text = fmt::format("{}: KL {} on rows held out", step.name, plus_minus(step.kl->value, step.kl->error, 5));
  if (!step.difference) return text;
  const auto& [value, error] = *step.difference;
  text += value == 0 ? ", as before" : fmt::format(", {} {} than before", plus_minus(std::abs(value), error, 5), value < 0 ? "lower" : "higher");
  return text + (step.kept ? ": kept" : ": undone");
}

/// What files say of a step that was judged.
json judgement(const AutoStep& step) {
  json out{{"step", step.name}, {"kept", step.kept}, {"kl", or_null(step.kl->value)}, {"kl_se", or_null(step.kl->error)}};
  if (step.difference) out.update({{"kl_difference", or_null(step.difference->value)}, {"kl_difference_se", or_null(step.difference->error)}});
  return out;
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
  /// KL on the rows held out, row by row, of the model that a step made.
  std::vector<evaluate::RowSum> judge(const std::string& name);
  void choose_statistic_rows();
  /// For the steps that need statistics alone.
  RowOptions statistic_rows() const {
    const auto place = folder(run_.has_step("statistics") ? "statistics" : "rows");
    return {{place.string()}, std::min(o_.num_samples, kStatisticRows), o_.sequence_length, o_.seed, /*expert_tokens=*/0};
  }

  const AutoRun& o_;
  const model::Model& model_;
  const text::Tokenizer& tokenizer_;
  run::RunFolder& run_;
  const run::Context& context_;
  json manifest_;
  std::vector<calibration::Batch> judges_;
  std::optional<evaluate::Answers> teacher_;
  double choice_time_ = 0;                   ///< of choose_statistic_rows; the first step's time has it too, as expect() does
  std::string best_;                         ///< name of the step that made the best model; empty before there is one
  std::vector<evaluate::RowSum> best_rows_;  ///< what judge() said of it
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
      auto drawn =
          calibration::draw_examples({o_.data.begin(), o_.data.end()}, tokenizer_, {o_.sequence_length, false, model_.spec().vocab}, wanted, o_.seed);
      examples = std::move(drawn.examples), manifest = std::move(drawn.manifest);
    }
    if (examples.size() < 2) fail("pipeline", "the data has only {} rows; give at least 2, one to judge by", examples.size());
    if (static_cast<int>(examples.size()) < wanted)
      context_.line(
          fmt::format("{} rows were asked for ({} of them to judge by) and {} found; all of them are used", wanted, kJudges, examples.size()));
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
  if (judges_.size() == 1 && judges_[0].rows() == 1)
    context_.line("the texts held out fill one row, so that standard errors are not known and means alone decide");
  choose_statistic_rows();
}

/// Of mixtures, once for all steps, each of which would count experts' tokens otherwise.
void Auto::choose_statistic_rows() {
  const auto start = Clock::now();
  auto options = statistic_rows();
  options.expert_tokens = o_.expert_tokens;
  RowSource source(options, tokenizer_, model_.spec());
  if (source.exchanges()) {
    const auto& drawn = source.draw(model_, run_, context_);
    std::string text;
    for (const auto& example : drawn.examples) text += json{{"tokens", example.tokens}}.dump() + "\n";
    const auto place = run_.begin_step("statistics");
    fs::create_directories(place);
    write_file_atomically("pipeline", place / "train.jsonl", text);
    run_.finish_step("statistics", drawn.manifest.at("experts_below"));
    run_.drop(kChosenRows);
  }
  if (run_.has_step("statistics")) manifest_["experts_below"] = run_.step_meta("statistics");
  choice_time_ = seconds_since(start);
}

// The rows are kept rather than their mean, so that a run that goes on compares as it would have without the pause. Units of earlier versions
// hold the mean alone: their models are judged again.
std::vector<evaluate::RowSum> Auto::judge(const std::string& name) {
  const auto unit = "judged-" + name;
  std::vector<evaluate::RowSum> rows;
  if (const auto done = run_.load(unit); done && done->meta.contains("rows")) {
    for (const auto& row : done->meta.at("rows")) rows.push_back({or_nan(row.at("kl")), row.at("tokens").get<std::int64_t>()});
    return rows;
  }
  if (!teacher_) teacher_ = evaluate::stream_answers(model_, judges_);
  const auto files = checkpoint::Checkpoint::open(folder(name));
  rows = evaluate::measure(evaluate::stream_answers(model::Model::open(files), judges_), &*teacher_, judges_).kl_rows;
  auto kept = json::array();
  for (const auto& row : rows) kept.push_back({{"kl", or_null(row.sum)}, {"tokens", row.tokens}});
  run_.save(unit, {}, {{"rows", kept}});
  return rows;
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
  auto rows = judge(name);
  step.kl = evaluate::token_mean(rows);
  if (!best_.empty()) step.difference = evaluate::paired_difference(rows, best_rows_);
  step.time = seconds_since(start) + std::exchange(choice_time_, 0);
  // A divergence that is not a number is never kept.
  step.kept = step.difference ? step.difference->value < 0 : std::isfinite(step.kl->value);
  context_.line(verdict(step));
  if (step.kept) {
    best_ = name;
    best_rows_ = std::move(rows);
  }
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
  for (const auto& step : result.steps) steps.push_back(judgement(step));
  const double best_kl = evaluate::token_mean(best_rows_).value;
  writer.finish(&plan_, made.stored_dtype(),
                {"auto", options, manifest_, {{"predicted_kl", result.predicted_kl}, {"held_out_kl", best_kl}, {"steps", steps}}});
}

}  // namespace

json AutoResult::to_json() const {
  json out{{"bits_per_weight", bits_per_weight}, {"bytes", bytes}, {"predicted_kl", predicted_kl}, {"peak_memory", peak_use()}};
  for (const auto& s : steps) {
    json step = s.kl ? judgement(s) : json{{"step", s.name}, {"kept", s.kept}};
    step["seconds"] = s.time;
    if (s.expected_time > 0) step.update({{"expected_seconds", s.expected_time}, {"expected_memory", s.expected_memory}});
    out["steps"].push_back(step);
  }
  return out;
}

AutoResult auto_quantize(const AutoRun& given, const run::Context& context) {
  auto o = given;
  for (const auto& step : o.steps)
    if (step != "awq" && step != "gptq" && step != "blocks" && step != "dwq")
      throw UsageError(fmt::format("--steps {} is none of awq, gptq, blocks, dwq", step));
  if (context.ranks() > 1) throw UsageError("auto runs as one process; of its steps dwq alone can be shared among several");
  if (!o.dry_run) check_output(o.output);
  const auto checkpoint = model::open_checkpoint(o.model);
  const auto model = model::Model::open(checkpoint);
  if (!model.formats().empty()) fail("pipeline", "{}: is quantized already; start from the original", o.model.string());
  check_source(model, context);
  const int dense_bytes = static_cast<int>(mx::size_of(model.stored_dtype()));
  o.target = target_or_default(allocation_of(o), kDefault, model.spec(), dense_bytes, context);
  check_target(allocation_of(o), model.spec(), dense_bytes);
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  check_positions(model.spec(), o.sequence_length);
  const auto expected = expect(o, model);
  tell(expected, o, model, context);
  if (o.dry_run) {
    AutoResult result;
    result.steps = expected;
    return result;
  }
  const auto options = options_of(o, model.spec());
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
