// Two walks through the model side by side: the student's, whose every finished linear is already quantized, and (for the correction) the
// full-precision model's. Where a block's next linears read, both halt; the Hessians of that input are summed, the linears are quantized,
// and the student goes on with what they have become.
#include "pipeline/gptq.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <unordered_map>

#include "base/error.h"
#include "base/hash.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "kernels/primitive.h"
#include "model/pack.h"
#include "pipeline/block_run.h"
#include "pipeline/block_tensors.h"
#include "pipeline/block_training.h"
#include "pipeline/folds.h"
#include "pipeline/gptq_linears.h"
#include "pipeline/memory.h"
#include "pipeline/output.h"

namespace lquant::pipeline {
namespace mx = mlx::core;
namespace fs = std::filesystem;
using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

// On a GPU: Hessians and factors come in few large sizes, and what is cached beyond the largest of them is only held.
constexpr double kCache = 2e9;

plan::QuantPlan plan_for(const GptqRun& o, const model::ModelSpec& spec, const std::optional<json>& overrides) {
  auto plan = plan::fallback_plan(spec, o.format, o.fallback);
  if (o.embed_bits)
    plan::apply_overrides(plan, spec, {{spec.embedding.path, {{"bits", *o.embed_bits}, {"group_size", o.fallback.group_size}}}}, "--embed-bits");
  if (overrides) plan::apply_overrides(plan, spec, *overrides, o.plan->string());
  return plan;
}

const char* name_of(quantize::ActOrder order) {
  return order == quantize::ActOrder::off ? "off" : order == quantize::ActOrder::gar ? "gar" : "static";
}
const char* name_of(Asymmetric a) { return a == Asymmetric::off ? "off" : a == Asymmetric::on ? "on" : "auto"; }

json options_of(const GptqRun& o, const std::optional<json>& overrides) {
  json options{{"bits", o.format.bits},
               {"group_size", o.format.group_size},
               {"fallback_bits", o.fallback.bits},
               {"fallback_group_size", o.fallback.group_size},
               {"num_samples", o.rows.num_samples},
               {"sequence_length", o.rows.sequence_length},
               {"seed", o.rows.seed},
               {"act_order", name_of(o.method.act_order)},
               {"damp", o.method.damp},
               {"range_search", o.method.range_search},
               {"sweeps", o.method.sweeps},
               {"hessians", o.sequential ? "sequential" : "parallel"},
               {"asymmetric", name_of(o.asymmetric)}};
  if (o.training.epochs > 0) options["train_blocks"] = o.training.epochs;
  if (o.embed_bits) options["embed_bits"] = *o.embed_bits;
  if (overrides) options["plan"] = *overrides;
  return options;
}

/// The run of one command: everything that a block's turn needs.
class Gptq : public BlockMethod {
 public:
  Gptq(const GptqRun& options, const model::Folds& folds, BlockRun& run)
      : o_(options),
        model_(run.model()),
        spec_(model_.spec()),
        plan_(run.plan()),
        rows_(run.rows()),
        run_(run),
        context_(run.context()),
        training_(options.training, run),
        linears_({options, model_, plan_, folds, context_}, result_) {
    result_.tokens = rows_.tokens;
    // One batch alone fits everything and can judge nothing.
    if (o_.asymmetric == Asymmetric::automatic && rows_.held_every() > 1) held_every_ = rows_.held_every();
    paired_ = o_.asymmetric == Asymmetric::on || held_every_ > 0;
  }

  bool needs_teacher() const override { return paired_ || training_.wanted(); }
  codec::Packed pack_outer(const mx::array& weight, const codec::Format& format) override { return codec::range_search(weight, format).packed; }
  Turn turn(const BlockTensors& source) override;
  model::Tensors finish() override;

  /// When everything is quantized; what the output tells is still missing.
  GptqResult total() const {
    auto total = result_;
    if (linears_.correctable() > 0) total.corrected /= linears_.correctable();
    return total;
  }

 private:
  bool held(std::size_t batch) const { return held_every_ > 0 && batch % held_every_ == held_every_ - 1; }
  void observe(const std::string& path, const mx::array& input, const model::ExpertRows* experts, std::size_t batch, const mx::array* reference);
  model::Tensors student_of(const BlockTensors& source, const model::Tensors& tensors, int stage);
  void halt(Walk& walk, int stage, const BlockTensors& source, const model::Tensors& tensors);

  const GptqRun& o_;
  const model::Model& model_;
  const model::ModelSpec& spec_;
  const plan::QuantPlan& plan_;
  const Rows& rows_;
  BlockRun& run_;
  const run::Context& context_;
  std::size_t held_every_ = 0;
  bool paired_ = false;
  BlockTraining training_;
  model::Tensors dense_;  // the present block's packed linears but the experts, by path, made dense
  GptqResult result_;
  GptqLinears linears_;
};

void Gptq::observe(const std::string& path, const mx::array& input, const model::ExpertRows* experts, std::size_t batch, const mx::array* reference) {
  if (!plan_.formats.count(path) || plan_.formats.at(path).mode != codec::Mode::affine) return;
  auto start = Clock::now();
  if (!experts || !experts->source) kernels::settle({input});
  result_.forward_time += seconds_since(start);
  start = Clock::now();
  const auto& counted = rows_.counted[batch];
  // Of experts nothing is held out: their inputs have no reference to be judged by.
  (held(batch) && !experts ? linears_.held_hessians : linears_.hessians)
      .add(path, input, experts, experts ? nullptr : reference, counted ? &*counted : nullptr);
  result_.hessian_time += seconds_since(start);
}

/// The quantized model's tensors as far as it goes: what is not packed is as it was.
model::Tensors Gptq::student_of(const BlockTensors& source, const model::Tensors& tensors, int stage) {
  std::vector<const model::LinearSpec*> unpacked;
  model::Tensors some;
  for (const auto* linear : source.read_before(stage)) {
    if (tensors.contains(linear->path + ".scales"))
      some.insert({linear->path + ".weight", linears_.dense(*linear, tensors)});
    else
      unpacked.push_back(linear);
  }
  auto student = source.full_with(unpacked);
  student.merge(some);
  for (const auto* linear : spec_.blocks[source.block()].linears()) {
    if (linear->routed() || !tensors.contains(linear->path + ".scales")) continue;
    auto kept = dense_.find(linear->path);
    if (kept == dense_.end()) kept = dense_.emplace(linear->path, linears_.dense(*linear, tensors)).first;
    student.insert_or_assign(linear->path + ".weight", kept->second);
  }
  return student;
}

/// Brings the teacher's walk to a stage, and then this one; what the linears there read is summed, or kept.
void Gptq::halt(Walk& walk, int stage, const BlockTensors& source, const model::Tensors& tensors) {
  const int block = source.block();
  const auto batches = rows_.ids.size();
  const auto start = Clock::now();
  const double elsewhere = result_.hessian_time + result_.forward_time;
  std::vector<std::unordered_map<std::string, mx::array>> references(batches);  // what the same linears read in the full-precision model
  if (auto* teacher = run_.teacher()) {
    const auto full = source.full_with(source.read_before(stage));
    for (std::size_t b = 0; b < batches; ++b) {
      const model::Observer reader = [&](const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
        if (!experts) references[b].insert_or_assign(path, input);
      };
      teacher->advance(b, block, stage, full, {}, paired_ ? &reader : nullptr);
      for (auto& [path, input] : references[b]) input.eval();
    }
    release_freed_memory(spec_);
  }
  const auto student = student_of(source, tensors, stage);
  for (std::size_t b = 0; b < batches; ++b) {
    const model::Observer observer = [&](const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
      const auto reference = references[b].find(path);
      observe(path, input, experts, b, reference == references[b].end() ? nullptr : &reference->second);
    };
    walk.advance(b, block, stage, student, {}, &observer);
    references[b].clear();
  }
  result_.forward_time += seconds_since(start) - (result_.hessian_time + result_.forward_time - elsewhere);
  context_.check();
  release_freed_memory(spec_);
}

BlockMethod::Turn Gptq::turn(const BlockTensors& source) {
  auto& walk = run_.student();
  auto tensors = source.stored();
  const int block = source.block(), stages = walk.stages(block);
  const bool trains = training_.wanted();
  const auto before = trains || !linears_.edges().empty() ? std::optional(walk) : std::nullopt;
  linears_.begin_block();
  dense_.clear();
  const auto& chosen = linears_.chosen();
  const auto linears = spec_.blocks[block].linears();
  const GptqLinears::WeightOf weight_of = [&](const model::LinearSpec& linear) { return source.weight(linear); };
  if (o_.sequential) {
    for (int stage = 0; stage < stages; ++stage) {
      halt(walk, stage, source, tensors);
      linears_.quantize(linears, tensors, weight_of);
    }
  } else {
    auto probe = walk;
    for (int stage = 0; stage < stages; ++stage) halt(probe, stage, source, tensors);
    linears_.quantize(linears, tensors, weight_of);
  }
  const auto start = Clock::now();
  if (auto* teacher = run_.teacher()) {
    const auto full = source.full_with(source.read_before(stages));
    for (std::size_t b = 0; b < rows_.ids.size(); ++b) teacher->leave(b, block, full, {});
  }
  if (o_.sequential && !trains && chosen.empty()) {
    const auto student = student_of(source, tensors, stages);
    for (std::size_t b = 0; b < rows_.ids.size(); ++b) walk.leave(b, block, student, {});
  }
  dense_.clear();
  for (const auto* linear : linears) {
    const auto& path = linear->path;
    const auto planned = plan_.formats.find(path);
    if (linear->reads == 0 && planned != plan_.formats.end())
      model::put_packed(tensors, path, codec::quantize(source.weight(*linear), planned->second));
    else if (!tensors.contains(path + ".weight"))
      tensors.insert({path + ".weight", source.weight(*linear)});
  }
  for (const auto& edge : linears_.edges()) {
    if (!chosen.contains(edge.producer)) continue;
    model::fold_producer(edge, chosen.at(edge.producer), tensors, model_.stored_dtype());
    model::fold_consumers(edge, chosen.at(edge.producer), tensors);
  }
  tensors = model_.cast(std::move(tensors), model_.stored_dtype());
  result_.forward_time += seconds_since(start);
  auto figure = fmt::format("output errors {:.2f} of plain rounding's", linears_.error_ratio());
  if (trains) {
    const auto began = Clock::now();
    auto full = source.all_stored();
    model::fold_block(spec_, block, chosen, full, model_.stored_dtype());
    figure += fmt::format(", trained to {:.2f} of that", training_.train(block, full, *before, tensors).loss);
    result_.train_time += seconds_since(began);
  }
  const auto again = Clock::now();
  if (trains || !chosen.empty() || !o_.sequential) {
    // The next block shall get what the written tensors give, to the last bit, as it will when a killed run goes on.
    if (before) walk = *before;
    walk.pass(block, walked(model_, plan_, tensors), {});
  }
  result_.forward_time += seconds_since(again);
  for (const auto& [producer, scales] : chosen) tensors.insert({kFoldPrefix + producer, scales});
  return {{std::move(tensors), json::object()}, figure};
}

/// By the inputs that the head, or the embedding that serves as one, gets behind the last block.
model::Tensors Gptq::finish() {
  const auto& linear = spec_.head ? *spec_.head : spec_.embedding;
  auto tensors = model::dense_tensors(model_, model_.load_final(model_.stored_dtype()));
  const auto outer = model_.cast(tensors, model_.compute_dtype());
  for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
    if (!run_.student().ends(b)) continue;
    const auto input = [&](const mx::array& states) { return model::final_norm(spec_, outer, states, model_.formats()); };
    const std::optional<mx::array> reference = paired_ ? std::optional(input(run_.teacher()->states(b))) : std::nullopt;
    observe(linear.path, input(run_.student().states(b)), nullptr, b, reference ? &*reference : nullptr);
  }
  linears_.quantize({&linear}, tensors, [&](const model::LinearSpec&) { return tensors.at(linear.path + ".weight"); });
  return tensors;
}

}  // namespace

json GptqResult::to_json() const {
  return {{"bits_per_weight", bits_per_weight},
          {"bytes", bytes},
          {"tokens", tokens},
          {"seconds", total_time},
          {"peak_memory", peak_use()},
          {"correction", corrected},
          {"time",
           {{"forward", forward_time},
            {"hessians", hessian_time},
            {"range_search", search_time},
            {"factors", factor_time},
            {"solve", solve_time},
            {"training", train_time}}}};
}

GptqResult gptq(const GptqRun& o, const run::Context& context) {
  without_cuda_graphs();
  if (o.format.mode != codec::Mode::affine) throw UsageError("gptq needs scales and biases, which only the affine mode has");
  BlockRun run({"gptq", "quantizing blocks", o.model, o.output, o.rows, o.fresh}, context);
  const auto& spec = run.model().spec();
  const std::optional<json> overrides = o.plan ? std::optional(read_plan(*o.plan)) : std::nullopt;
  run.follow(plan_for(o, spec, overrides));
  auto recorded = options_of(o, overrides);
  const auto options = recorded;
  json scales = json::object();
  const auto folds = o.scaled ? as_powers_of_two(read_folds(*o.scaled, spec), spec) : model::Folds{};
  if (o.scaled && folds.empty()) context.line(fmt::format("{}: holds no scales; the model is taken as it is", o.scaled->string()));
  if (!folds.empty()) recorded["scales"] = scales["scales"] = sha256_file(*o.scaled / kFoldFile);
  run.begin(options, scales);

  const CacheBound bound(kCache);
  Gptq work(o, folds, run);
  run.quantize(work);
  const auto written = run.write(recorded);
  if (!folds.empty()) context.line(fmt::format("scales kept on {} of {} edges that have some", written.folds.size(), folds.size()));
  auto result = work.total();
  result.bits_per_weight = written.size.bits_per_weight(), result.bytes = written.size.bytes;
  result.total_time = written.seconds;
  const auto share = [&](double seconds) { return 100 * seconds / result.total_time; };
  const auto training = o.training.epochs > 0 ? fmt::format(", training {:.0f} %", share(result.train_time)) : "";
  context.line(fmt::format("done in {}: forward {:.0f} %, Hessians {:.0f} %, range search {:.0f} %, factors {:.0f} %, solve {:.0f} %{}",
                           format_duration(result.total_time), share(result.forward_time), share(result.hessian_time), share(result.search_time),
                           share(result.factor_time), share(result.solve_time), training));
  return result;
}

}  // namespace lquant::pipeline
