// Two walks through the model side by side: the student's, whose every finished linear is already quantized, and (for the correction) the
// full-precision model's. Where a block's next linears read, both halt; the Hessians of that input are summed, the linears are quantized,
// and the student goes on with what they have become.
#include "pipeline/gptq.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <unordered_map>

#include "base/error.h"
#include "base/hash.h"
#include "calibration/hessian.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "model/pack.h"
#include "pipeline/block_run.h"
#include "pipeline/block_training.h"
#include "pipeline/experts.h"
#include "pipeline/folds.h"
#include "pipeline/output.h"

namespace lquant::pipeline {
namespace mx = mlx::core;
namespace fs = std::filesystem;
using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

// AWQ's scales must lower the output error by this share: rounding anew moves it by about as much either way.
constexpr double kWorthScaling = 0.01;

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
        folds_(folds),
        run_(run),
        context_(run.context()),
        training_(options.training, run) {
    result_.tokens = rows_.tokens;
    // One batch alone fits everything and can judge nothing.
    if (o_.asymmetric == Asymmetric::automatic && rows_.held_every() > 1) held_every_ = rows_.held_every();
    paired_ = o_.asymmetric == Asymmetric::on || held_every_ > 0;
    for (const auto& edge : spec_.edges())
      if (folds_.contains(edge.producer)) edges_.push_back(edge);
  }

  bool needs_teacher() const override { return paired_ || training_.wanted(); }
  codec::Packed pack_outer(const mx::array& weight, const codec::Format& format) override { return codec::range_search(weight, format).packed; }
  Turn turn(int block, const model::Tensors& stored, const model::Tensors& full) override;
  model::Tensors finish() override;

  /// When everything is quantized; what the output tells is still missing.
  GptqResult total() const {
    auto total = result_;
    if (correctable_ > 0) total.corrected /= correctable_;
    return total;
  }

 private:
  bool held(std::size_t batch) const { return held_every_ > 0 && batch % held_every_ == held_every_ - 1; }
  void observe(const std::string& path, const mx::array& input, const model::ExpertRows* experts, std::size_t batch, const mx::array* reference);
  /// A quantized linear. Errors are those of quantize::GptqResult; `judged` is by the true distance of its outputs from the full-precision model's,
  /// on rows held out if there are any, up to a constant.
  struct Quantized {
    codec::Packed packed;
    mx::array dense;  ///< what it stands for without `columns`, in the compute dtype
    double plain_error = 0, error = 0, judged = 0;
  };
  Quantized quantize_linear(const model::LinearSpec& linear, const mx::array& weight, const mx::array* columns);
  quantize::GptqResult quantize_matrix(const std::string& path, const mx::array& weight, const calibration::Hessian& hessian,
                                       const calibration::Hessian* train, const calibration::Hessian* held, const codec::Format& format);
  const model::Edge* scaled_edge(const model::LinearSpec& linear) const;
  /// The linears whose Hessians are there: `tensors` gets their packed form, `student` what that stands for.
  void quantize_seen(const std::vector<const model::LinearSpec*>& linears, model::Tensors& tensors, model::Tensors& student);
  void halt(Walk& walk, int block, int stage, const model::Tensors& full, const model::Tensors& weights);

  const GptqRun& o_;
  const model::Model& model_;
  const model::ModelSpec& spec_;
  const plan::QuantPlan& plan_;
  const Rows& rows_;
  const model::Folds& folds_;  ///< tried edge by edge
  BlockRun& run_;
  const run::Context& context_;
  std::size_t held_every_ = 0;
  bool paired_ = false;
  BlockTraining training_;
  calibration::HessianStore train_, held_;
  std::vector<model::Edge> edges_;      // that have scales
  model::Folds chosen_;                 // of the present block
  double plain_error_ = 0, error_ = 0;  // of the present block
  double correctable_ = 0;
  GptqResult result_;
};

void Gptq::observe(const std::string& path, const mx::array& input, const model::ExpertRows* experts, std::size_t batch, const mx::array* reference) {
  if (!plan_.formats.count(path) || plan_.formats.at(path).mode != codec::Mode::affine) return;
  auto start = Clock::now();
  mx::array settled = input;
  settled.eval();
  result_.forward_time += seconds_since(start);
  start = Clock::now();
  const auto& counted = rows_.counted[batch];
  // Of experts nothing is held out: their inputs have no reference to be judged by.
  (held(batch) && !experts ? held_ : train_).add(path, settled, experts, experts ? nullptr : reference, counted ? &*counted : nullptr);
  result_.hessian_time += seconds_since(start);
}

quantize::GptqResult Gptq::quantize_matrix(const std::string& path, const mx::array& weight, const calibration::Hessian& hessian,
                                           const calibration::Hessian* train, const calibration::Hessian* held, const codec::Format& format) {
  auto method = o_.method;
  if (hessian.shift) {
    const auto start = Clock::now();
    method.correction = o_.asymmetric == Asymmetric::on ? 1 : train && held ? quantize::correction_share(weight, *train, *held, method.damp) : 0;
    result_.factor_time += seconds_since(start);
    result_.corrected += method.correction;
    ++correctable_;
  }
  auto done = quantize::gptq(path, weight, hessian, format, method);
  result_.search_time += done.search_time;
  result_.factor_time += done.factor_time;
  result_.solve_time += done.solve_time;
  if (done.damp > method.damp) context_.warn(fmt::format("{}: its Hessian needed a damping of {:.2g}; more rows help", path, done.damp));
  return done;
}

Gptq::Quantized Gptq::quantize_linear(const model::LinearSpec& linear, const mx::array& weight, const mx::array* columns) {
  const auto format = plan_.formats.at(linear.path);
  const auto stored = model_.stored_dtype();
  const auto scaled = columns ? mx::astype(mx::multiply(weight, columns->ndim() == 2 ? mx::expand_dims(*columns, -2) : *columns), stored) : weight;
  Quantized all{{mx::array(0), mx::array(0), std::nullopt}, mx::array(0)};
  if (format.mode != codec::Mode::affine) {
    all.packed = codec::quantize(scaled, format);
  } else {
    const auto both = [&](const std::vector<calibration::Hessian>& sums) {
      auto pooled = sums;
      if (held_.has(linear.path))
        for (std::size_t e = 0; e < sums.size(); ++e) pooled[e] = calibration::together(sums[e], held_.of(linear.path)[e]);
      return pooled;
    };
    const auto hessians = supported(linear, both(train_.of(linear.path)), context_);
    std::vector<mx::array> codes, scales, biases;
    for (int e = 0; e < std::max(1, linear.experts); ++e) {
      const auto cut = [&](const mx::array& x) {
        return linear.experts == 0 ? x : mx::reshape(mx::slice(x, {e, 0, 0}, {e + 1, linear.out, linear.in}), {linear.out, linear.in});
      };
      const auto own = [&](const calibration::Hessian& h) {
        return columns ? calibration::rescaled(h, columns->ndim() == 2 ? mx::take(*columns, e, 0) : *columns) : h;
      };
      const auto& hessian = calibration::of_matrix(hessians, e);
      const bool judged = held_.has(linear.path) && hessians.size() == 1;
      const auto train = own(calibration::of_matrix(train_.of(linear.path), e)), held = judged ? own(held_.of(linear.path).front()) : train;
      const auto name = linear.experts == 0 ? linear.path : fmt::format("{} (matrix {})", linear.path, e);
      const auto done = quantize_matrix(name, cut(scaled), own(hessian), judged ? &train : nullptr, judged ? &held : nullptr, format);
      codes.push_back(done.packed.codes), scales.push_back(done.packed.scales), biases.push_back(*done.packed.biases);
      all.plain_error += done.plain_error, all.error += done.error;
      if (scaled_edge(linear)) all.judged += quantize::output_error(cut(scaled), done.packed, format, judged ? held : own(hessian));
    }
    const auto joined = [&](const std::vector<mx::array>& parts) { return linear.experts == 0 ? parts.front() : mx::stack(parts); };
    all.packed = {joined(codes), joined(scales), joined(biases)};
  }
  all.dense = codec::dequantize(all.packed, format, columns ? mx::float32 : stored);
  if (columns) all.dense = mx::astype(mx::divide(all.dense, columns->ndim() == 2 ? mx::expand_dims(*columns, -2) : *columns), stored);
  if (model_.compute_dtype() != stored) all.dense = mx::astype(all.dense, model_.compute_dtype());
  all.dense.eval();
  return all;
}

const model::Edge* Gptq::scaled_edge(const model::LinearSpec& linear) const {
  for (const auto& edge : edges_)
    if (std::find(edge.consumers.begin(), edge.consumers.end(), linear.path) != edge.consumers.end()) return &edge;
  return nullptr;
}

void Gptq::quantize_seen(const std::vector<const model::LinearSpec*>& linears, model::Tensors& tensors, model::Tensors& student) {
  const auto take = [&](const model::LinearSpec& linear, const Quantized& q) {
    model::put_packed(tensors, linear.path, q.packed);
    student.insert_or_assign(linear.path + ".weight", q.dense);
    plain_error_ += q.plain_error, error_ += q.error;
    context_.check();
  };
  std::map<const model::Edge*, std::vector<const model::LinearSpec*>> together;  // readers of an edge with scales: all take them, or none
  for (const auto* linear : linears) {
    const auto planned = plan_.formats.find(linear->path);
    if (planned == plan_.formats.end() || tensors.contains(linear->path + ".scales")) continue;
    if (planned->second.mode == codec::Mode::affine && !train_.has(linear->path)) continue;
    if (const auto* edge = scaled_edge(*linear))
      together[edge].push_back(linear);
    else
      take(*linear, quantize_linear(*linear, tensors.at(linear->path + ".weight"), nullptr));
  }
  for (const auto& [edge, readers] : together) {
    const auto columns = model::column_scales(*edge, folds_.at(edge->producer));
    std::vector<Quantized> plain, scaled;
    double gain = 0, error = 0;
    for (const auto* linear : readers) {
      const auto& weight = tensors.at(linear->path + ".weight");
      plain.push_back(quantize_linear(*linear, weight, nullptr));
      scaled.push_back(quantize_linear(*linear, weight, &columns));
      gain += plain.back().judged - scaled.back().judged;
      error += plain.back().error;
    }
    const bool better = gain > kWorthScaling * error;
    if (better) chosen_.insert({edge->producer, folds_.at(edge->producer)});
    for (std::size_t i = 0; i < readers.size(); ++i) take(*readers[i], better ? scaled[i] : plain[i]);
  }
  train_.clear();
  held_.clear();
}

/// Brings a walk, and the teacher's, to a stage; what the linears there read is summed.
void Gptq::halt(Walk& walk, int block, int stage, const model::Tensors& full, const model::Tensors& weights) {
  auto* teacher = run_.teacher();
  for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
    const auto start = Clock::now();
    const double elsewhere = result_.hessian_time + result_.forward_time;
    std::unordered_map<std::string, mx::array> references;  // what the same linears read in the full-precision model
    const model::Observer reader = [&](const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
      if (!experts) references.insert_or_assign(path, input);
    };
    if (teacher) teacher->advance(b, block, stage, full, {}, paired_ ? &reader : nullptr);
    const model::Observer observer = [&](const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
      const auto reference = references.find(path);
      observe(path, input, experts, b, reference == references.end() ? nullptr : &reference->second);
    };
    walk.advance(b, block, stage, weights, {}, &observer);
    result_.forward_time += seconds_since(start) - (result_.hessian_time + result_.forward_time - elsewhere);
  }
  context_.check();
}

BlockMethod::Turn Gptq::turn(int block, const model::Tensors& stored, const model::Tensors& full) {
  auto& walk = run_.student();
  auto tensors = stored, student = full;
  const bool trains = training_.wanted();
  const auto before = trains || !edges_.empty() ? std::optional(walk) : std::nullopt;
  plain_error_ = error_ = 0;
  chosen_.clear();
  const auto linears = spec_.blocks[block].linears();
  if (o_.sequential) {
    for (int stage = 0; stage < walk.stages(block); ++stage) {
      halt(walk, block, stage, full, student);
      quantize_seen(linears, tensors, student);
    }
  } else {
    auto probe = walk;
    for (int stage = 0; stage < walk.stages(block); ++stage) halt(probe, block, stage, full, student);
    quantize_seen(linears, tensors, student);
  }
  const auto start = Clock::now();
  for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
    if (run_.teacher()) run_.teacher()->leave(b, block, full, {});
    if (o_.sequential && !trains) walk.leave(b, block, student, {});
  }
  for (const auto& edge : edges_) {
    if (!chosen_.contains(edge.producer)) continue;
    model::fold_producer(edge, chosen_.at(edge.producer), tensors, model_.stored_dtype());
    model::fold_consumers(edge, chosen_.at(edge.producer), tensors);
  }
  for (const auto* linear : linears)
    if (const auto planned = plan_.formats.find(linear->path); linear->reads == 0 && planned != plan_.formats.end())
      model::put_packed(tensors, linear->path, codec::quantize(tensors.at(linear->path + ".weight"), planned->second));
  for (auto& [name, tensor] : tensors)
    if (tensor.dtype() == mx::float32) tensor = mx::astype(tensor, model_.stored_dtype());
  result_.forward_time += seconds_since(start);
  auto figure = fmt::format("output errors {:.2f} of plain rounding's", plain_error_ > 0 ? error_ / plain_error_ : 1);
  if (trains) {
    const auto began = Clock::now();
    auto dense = stored;
    model::fold_block(spec_, block, chosen_, dense, model_.stored_dtype());
    figure += fmt::format(", trained to {:.2f} of that", training_.train(block, dense, *before, tensors).loss);
    result_.train_time += seconds_since(began);
  }
  const auto again = Clock::now();
  if (trains || !chosen_.empty()) {
    // The next block shall get what the written tensors give, to the last bit, as it will when a killed run goes on.
    walk = *before;
    walk.pass(block, walked(model_, plan_, tensors), {});
  } else if (!o_.sequential) {
    walk.pass(block, student, {});
  }
  result_.forward_time += seconds_since(again);
  for (const auto& [producer, scales] : chosen_) tensors.insert({kFoldPrefix + producer, scales});
  return {{std::move(tensors), json::object()}, figure};
}

/// By the inputs that the head, or the embedding that serves as one, gets behind the last block.
model::Tensors Gptq::finish() {
  const auto& linear = spec_.head ? *spec_.head : spec_.embedding;
  auto tensors = model::dense_tensors(model_, model_.load_final(model_.stored_dtype()));
  const auto outer = model_.load_final(model_.compute_dtype());
  for (std::size_t b = 0; b < rows_.ids.size(); ++b) {
    if (!run_.student().ends(b)) continue;
    const auto input = [&](const mx::array& states) { return model::final_norm(spec_, outer, states, model_.formats()); };
    const std::optional<mx::array> reference = paired_ ? std::optional(input(run_.teacher()->states(b))) : std::nullopt;
    observe(linear.path, input(run_.student().states(b)), nullptr, b, reference ? &*reference : nullptr);
  }
  model::Tensors unused;
  quantize_seen({&linear}, tensors, unused);
  return tensors;
}

}  // namespace

json GptqResult::to_json() const {
  return {{"bits_per_weight", bits_per_weight},
          {"bytes", bytes},
          {"tokens", tokens},
          {"seconds", total_time},
          {"peak_memory", peak_memory()},
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
