// Two walks through the model side by side: the student's, whose finished blocks are quantized, and the full-precision model's, whose outputs
// say what a block's should be. Each block gives its second moments once, in full precision, before anything in it changes.
#include "pipeline/awq.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "model/pack.h"
#include "pipeline/awq_block.h"
#include "pipeline/block_run.h"
#include "pipeline/experts.h"
#include "pipeline/folds.h"
#include "pipeline/memory.h"
#include "pipeline/output.h"

namespace lquant::pipeline {
using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

const char* name_of(AwqInputs inputs) { return inputs == AwqInputs::quantized ? "quantized" : inputs == AwqInputs::full ? "full" : "auto"; }

plan::QuantPlan plan_for(const AwqRun& o, const model::ModelSpec& spec, const std::optional<json>& overrides) {
  auto plan = plan::fallback_plan(spec, o.format, o.embedding);
  if (overrides) plan::apply_overrides(plan, spec, *overrides, o.plan->string());
  return plan;
}

/// The second moments that one walk's inputs give: of the batches that choose, and of all.
class MomentStores {
 public:
  void add(bool judges, const std::string& path, const mx::array& input, const model::ExpertRows* experts, const mx::array* counted) {
    (judges ? judging_ : choosing_).add(path, input, experts, nullptr, counted);
  }
  /// They go on reading from here. Throws nothing away: a model with a single batch chooses by what it is judged with.
  AwqBlock::Choosing choosing(const std::vector<const model::LinearSpec*>& linears) const {
    AwqBlock::Choosing all;
    std::map<std::string, quantize::Hessians> of_stacks;  // by who shares them
    for (const auto* linear : linears) {
      const auto& path = linear->path;
      if (!seen(path)) continue;
      const auto& store = choosing_.has(path) ? choosing_ : judging_;
      if (!store.by_expert(path)) {
        all.insert({path, {store.of(path)}});
        continue;
      }
      const StackInputs inputs{&store.experts(path)};
      const quantize::Hessians made(tokens_of(*linear, inputs), [=](const auto& visit) { each_hessian(*linear, inputs, visit); });
      all.insert({path, of_stacks.insert({store.owner(path), made}).first->second});
    }
    return all;
  }
  AwqBlock::Weighing weighing(const std::vector<const model::LinearSpec*>& linears, const run::Context& context) const {
    AwqBlock::Weighing all;
    std::map<std::string, mx::array> of_stacks;
    for (const auto* linear : linears) {
      const auto& path = linear->path;
      if (!seen(path)) continue;
      const auto& store = choosing_.has(path) ? choosing_ : judging_;
      const bool both = &store == &choosing_ && judging_.has(path);
      if (!store.by_expert(path)) {
        all.insert({path, calibration::mean_squares(both ? calibration::together(store.of(path), judging_.of(path)) : store.of(path))});
        all.at(path).eval();
        continue;
      }
      StackInputs inputs{&store.experts(path)};
      if (both) inputs.push_back(&judging_.experts(path));
      warn_of_starved(*linear, inputs, context);
      auto [shared, is_new] = of_stacks.insert({store.owner(path), mx::array(0)});
      if (is_new) {
        std::vector<mx::array> squares(inputs.front()->experts(), mx::array(0));
        each_hessian(*linear, inputs, [&](int e, const calibration::Hessian& h) {
          squares[e] = calibration::mean_squares(h);
          squares[e].eval();
        });
        shared->second = squares.size() == 1 ? squares.front() : mx::stack(squares);
        shared->second.eval();
      }
      all.insert({path, shared->second});
    }
    return all;
  }

 private:
  bool seen(const std::string& path) const { return choosing_.has(path) || judging_.has(path); }

  calibration::HessianStore choosing_, judging_;
};

/// The run of one command.
class Awq : public BlockMethod {
 public:
  Awq(const AwqRun& options, BlockRun& run)
      : o_(options), model_(run.model()), spec_(model_.spec()), plan_(run.plan()), rows_(run.rows()), run_(run), context_(run.context()) {
    const auto every = rows_.held_every();
    for (std::size_t b = every - 1; b < rows_.ids.size(); b += every) judges_.push_back(b);
    result.tokens = rows_.tokens;
    result.edges = static_cast<int>(spec_.edges().size());
    result.error_ratio = 0;
  }

  bool needs_teacher() const override { return true; }
  codec::Packed pack_outer(const mx::array& weight, const codec::Format& format) override { return packed(weight, format, std::nullopt); }
  Turn turn(const BlockTensors& source) override;
  void skipped(const json& meta) override { count(meta); }
  model::Tensors finish() override;

  AwqResult result;

 private:
  bool judges(std::size_t batch) const { return std::find(judges_.begin(), judges_.end(), batch) != judges_.end(); }
  /// What a block's full-precision weights do.
  struct Seen {
    MomentStores by_student, by_teacher;  ///< of the inputs in either walk
    /// The full-precision model's states on the judging batches: behind each step but the last, by its number, and behind the block.
    std::map<int, std::vector<mx::array>> behind_step;
    std::vector<mx::array> behind_block;
  };
  Seen look(const BlockTensors& source);
  AwqSolution solve(const BlockTensors& source, bool& from_quantized);
  void count(const json& figures);
  void tell(int block, const AwqSolution& solution);
  codec::Packed packed(const mx::array& weight, const codec::Format& format, const std::optional<mx::array>& importance) const;

  const AwqRun& o_;
  const model::Model& model_;
  const model::ModelSpec& spec_;
  const plan::QuantPlan& plan_;
  const Rows& rows_;
  BlockRun& run_;
  const run::Context& context_;
  std::vector<std::size_t> judges_;
};

void Awq::tell(int block, const AwqSolution& solution) {
  if (solution.undone.empty()) return;
  std::string parts;
  for (const auto& part : solution.undone) parts += (parts.empty() ? "" : ", ") + (part == "clip" ? "searched ranges" : "scales of " + part);
  context_.line(fmt::format("block {}: undone, for they did not help: {}", block, parts));
}

/// A finished block's figures, also those of an earlier process.
void Awq::count(const json& figures) {
  result.error_ratio += figures.at("error_ratio").get<double>();
  result.scaled += figures.at("scaled").get<int>();
  result.clipped += figures.at("clipped").get<bool>();
  result.from_quantized += figures.at("from_quantized").get<bool>();
  ++result.blocks;
}

/// The teacher's walk comes out of the block, the student's stays before it.
Awq::Seen Awq::look(const BlockTensors& source) {
  const int block = source.block();
  Seen seen;
  Walk probe = run_.student();
  const auto advance = [&](Walk& walk, int stage, std::size_t b, const model::Tensors& full, MomentStores* stores) {
    const auto start = Clock::now();
    double summing = 0;
    const model::Observer observer = [&](const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
      mx::array settled = input;
      if (!experts || !experts->source) settled.eval();
      const auto began = Clock::now();
      stores->add(judges(b), path, settled, experts, rows_.counted[b] ? &*rows_.counted[b] : nullptr);
      summing += seconds_since(began);
    };
    walk.advance(b, block, stage, full, {}, stores ? &observer : nullptr);
    result.forward_time += seconds_since(start) - summing;
    result.hessian_time += summing;
  };
  const auto& spec = spec_.blocks[block];
  for (int stage = 0; stage < probe.stages(block); ++stage) {
    const int step = model::step_of(spec, stage);
    const auto full = source.full_with(source.read_before(stage));
    for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
      if (o_.inputs != AwqInputs::full) advance(probe, stage, b, full, &seen.by_student);
      advance(*run_.teacher(), stage, b, full, o_.inputs != AwqInputs::quantized ? &seen.by_teacher : nullptr);
      if (step > 0 && stage == model::first_stage(spec, step) && judges(b)) seen.behind_step[step - 1].push_back(run_.teacher()->states(b));
    }
    context_.check();
  }
  const auto start = Clock::now();
  const auto full = source.full_with(source.read_before(probe.stages(block)));
  for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
    run_.teacher()->leave(b, block, full, {});
    if (judges(b)) seen.behind_block.push_back(run_.teacher()->states(b));
  }
  result.forward_time += seconds_since(start);
  return seen;
}

AwqSolution Awq::solve(const BlockTensors& source, bool& from_quantized) {
  const auto linears = spec_.blocks[source.block()].linears();
  const auto seen = look(source);
  release_freed_memory(spec_);
  AwqBlock work({model_, plan_, o_.method, rows_, judges_, source, run_.student(), seen.behind_step, seen.behind_block});
  from_quantized = o_.inputs != AwqInputs::full;
  const auto& inputs = from_quantized ? seen.by_student : seen.by_teacher;
  auto solution = work.solve(inputs.choosing(linears), inputs.weighing(linears, context_));
  // In the first block nothing is quantized yet and both walks see the same.
  if (o_.inputs == AwqInputs::automatic && source.block() > 0) {
    // Experts that saw too few tokens are named already.
    auto other = work.reweighed(seen.by_teacher.weighing(linears, context_.silent()));
    if (clearly_below(other.error, solution.error)) {
      other.undone = solution.undone, other.plain_error = solution.plain_error;
      solution = std::move(other);
      from_quantized = false;
    }
  }
  result.search_time += work.search_time, result.gate_time += work.gate_time;
  return solution;
}

BlockMethod::Turn Awq::turn(const BlockTensors& source) {
  const int block = source.block();
  bool from_quantized = false;
  auto solution = solve(source, from_quantized);
  context_.check();
  tell(block, solution);
  const auto start = Clock::now();
  release_freed_memory(spec_);
  run_.student().pass(block, walked(model_, plan_, solution.packed), {});
  result.forward_time += seconds_since(start);

  run::RunFolder::Unit unit{std::move(solution.packed),
                            {{"error_ratio", sum(solution.plain_error) > 0 ? sum(solution.error) / sum(solution.plain_error) : 1},
                             {"scaled", solution.folds.size()},
                             {"clipped", solution.clipped},
                             {"from_quantized", from_quantized}}};
  for (const auto& [producer, scales] : solution.folds) unit.tensors.insert({kFoldPrefix + producer, scales});
  count(unit.meta);
  const auto figure = fmt::format("output error {:.2f} of plain rounding's", unit.meta.at("error_ratio").get<double>());
  return {std::move(unit), figure};
}

codec::Packed Awq::packed(const mx::array& weight, const codec::Format& format, const std::optional<mx::array>& importance) const {
  return format.mode == codec::Mode::affine && o_.method.clip ? codec::range_search(weight, format, importance).packed
                                                              : codec::quantize(weight, format);
}

model::Tensors Awq::finish() {
  const auto& linear = spec_.head ? *spec_.head : spec_.embedding;
  auto tensors = model::dense_tensors(model_, model_.load_final(model_.stored_dtype()));
  const auto outer = model_.cast(tensors, model_.compute_dtype());
  calibration::HessianStore moments;
  for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
    if (!run_.student().ends(b)) continue;
    auto input = model::final_norm(spec_, outer, run_.student().states(b), model_.formats());
    input.eval();
    moments.add(linear.path, input, nullptr, nullptr, rows_.counted[b] ? &*rows_.counted[b] : nullptr);
  }
  const auto& h = moments.of(linear.path);
  if (!mx::all(mx::isfinite(h.moment)).item<bool>())
    fail("pipeline",
         "{}: its inputs became NaN or infinite on the calibration data; make the model float32 first (lquant convert --dtype float32) or use "
         "other data",
         linear.path);
  if (const auto planned = plan_.formats.find(linear.path); planned != plan_.formats.end())
    model::put_packed(tensors, linear.path, packed(tensors.at(linear.path + ".weight"), planned->second, calibration::mean_squares(h)));
  return tensors;
}

}  // namespace

json AwqResult::to_json() const {
  return {{"bits_per_weight", bits_per_weight},
          {"bytes", bytes},
          {"tokens", tokens},
          {"seconds", total_time},
          {"peak_memory", peak_use()},
          {"output_error_ratio", error_ratio},
          {"edges", edges},
          {"edges_scaled", scaled},
          {"blocks_clipped", clipped},
          {"blocks_from_quantized_inputs", from_quantized},
          {"time", {{"forward", forward_time}, {"hessians", hessian_time}, {"search", search_time}, {"gate", gate_time}}}};
}

json awq_options(const AwqRun& o) {
  json options{{"bits", o.format.bits},
               {"group_size", o.format.group_size},
               {"embed_bits", o.embedding.bits},
               {"embed_group_size", o.embedding.group_size},
               {"num_samples", o.rows.num_samples},
               {"sequence_length", o.rows.sequence_length},
               {"seed", o.rows.seed},
               {"n_grid", o.method.grid},
               {"duo", o.method.duo},
               {"clip", o.method.clip},
               {"inputs", name_of(o.inputs)}};
  if (o.plan) options["plan"] = read_plan(*o.plan);
  return options;
}

AwqResult awq(const AwqRun& o, const run::Context& context) {
  if (o.format.mode != codec::Mode::affine) throw UsageError("awq searches scales and biases, which only the affine mode has");
  BlockRun run({"awq", "scaling blocks", o.model, o.output, o.rows, o.fresh}, context);
  const auto options = awq_options(o);
  run.follow(plan_for(o, run.model().spec(), options.contains("plan") ? std::optional(options.at("plan")) : std::nullopt));
  run.begin(options);

  Awq work(o, run);
  run.quantize(work);
  auto& result = work.result;
  if (result.blocks > 0) result.error_ratio /= result.blocks;
  const auto written = run.write(options);
  result.bits_per_weight = written.size.bits_per_weight(), result.bytes = written.size.bytes;
  result.total_time = written.seconds;
  const auto share = [&](double seconds) { return 100 * seconds / result.total_time; };
  context.line(fmt::format("done in {}: scales on {} of {} edges; forward {:.0f} %, second moments {:.0f} %, search {:.0f} %, gate {:.0f} %",
                           format_duration(result.total_time), written.folds.size(), result.edges, share(result.forward_time),
                           share(result.hessian_time), share(result.search_time), share(result.gate_time)));
  return result;
}

}  // namespace lquant::pipeline
