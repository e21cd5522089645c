// Scales are searched edge by edge on the readers' own output errors (quantize/awq.h). Where several linears read an edge, and their errors do not
// simply add up, the best few candidates are judged by what the sub-layer then puts out. In the end the whole block is judged: parts are taken
// away one by one, and stay away unless its outputs are clearly farther from the full-precision model's without them.
#include "pipeline/awq_block.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "codec/quantize.h"
#include "codec/range_search.h"
#include "model/pack.h"
#include "pipeline/block_run.h"

namespace lquant::pipeline {
namespace {

using Clock = std::chrono::steady_clock;

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }

bool reads(const model::Edge& edge, const std::string& path) {
  return std::find(edge.consumers.begin(), edge.consumers.end(), path) != edge.consumers.end();
}

/// Mean squares of the inputs, f32 [K], or [E, K] of experts.
mx::array mean_squares(const std::vector<calibration::Hessian>& hessians) {
  std::vector<mx::array> all;
  for (const auto& h : hessians) all.push_back(calibration::mean_squares(h));
  return all.size() == 1 ? all.front() : mx::stack(all);
}

}  // namespace

double sum(const RowErrors& errors) { return std::accumulate(errors.begin(), errors.end(), 0.0); }

bool clearly_below(const RowErrors& a, const RowErrors& b) {
  const auto n = static_cast<double>(a.size());
  const double gain = sum(b) - sum(a);
  double spread = 0;
  for (std::size_t i = 0; i < a.size(); ++i) spread += std::pow(b[i] - a[i] - gain / n, 2);
  const double error = a.size() > 1 ? std::sqrt(spread * n / (n - 1)) : 0;  // of the sum of n differences
  return gain > 2 * error;
}

AwqBlock::AwqBlock(const Inputs& inputs) : in_(inputs), spec_(inputs.model.spec()), edges_(spec_.edges_of(in_.block)) {}

const codec::Format* AwqBlock::format_of(const std::string& path) const {
  const auto it = in_.plan.formats.find(path);
  return it == in_.plan.formats.end() ? nullptr : &it->second;
}

void AwqBlock::add_distance(RowErrors& errors, std::size_t judge, const mx::array& states, const mx::array& reference) const {
  // Padding belongs to no text. What blocks carry to each other beside the residual is judged where it is used.
  const auto counts = mx::astype(mx::greater_equal(in_.rows.segments[in_.judges[judge]], mx::array(0)), mx::float32);
  // Every reader of the states norms them first, so a token's error counts relative to the token: a few huge ones would outvote all others.
  const auto made = f32(model::residual_of(spec_, states)), wanted = f32(model::residual_of(spec_, reference));
  const auto size = mx::maximum(mx::sum(mx::square(wanted), -1), mx::array(1e-20f));
  const auto squares = mx::divide(mx::sum(mx::square(mx::subtract(made, wanted)), -1), size);
  auto rows = mx::contiguous(mx::copy(mx::sum(mx::multiply(squares, counts), -1), mx::Device::cpu), false, mx::Device::cpu);
  rows.eval();
  errors.insert(errors.end(), rows.data<float>(), rows.data<float>() + rows.size());
}

RowErrors AwqBlock::step_error(const model::Tensors& tensors, int step) const {
  const int behind = model::first_stage(spec_.blocks[in_.block], step + 1);
  RowErrors errors;
  for (std::size_t j = 0; j < in_.judges.size(); ++j) {
    model::Context context;
    context.segments = in_.rows.segments[in_.judges[j]];
    model::Halted at{in_.student.states(in_.judges[j])};
    for (int stage = 0; stage <= behind; ++stage)
      at = model::advance(spec_, in_.student.visit(in_.judges[j], in_.block), stage, tensors, {}, at, context);
    add_distance(errors, j, at.residual, in_.behind_step.at(step)[j]);
  }
  return errors;
}

RowErrors AwqBlock::block_error(const model::Tensors& tensors) const {
  RowErrors errors;
  for (std::size_t j = 0; j < in_.judges.size(); ++j) {
    model::Context context;
    context.segments = in_.rows.segments[in_.judges[j]];
    const auto visit = in_.student.visit(in_.judges[j], in_.block);
    add_distance(errors, j, model::block(spec_, visit, tensors, {}, in_.student.states(in_.judges[j]), context), in_.behind_block[j]);
  }
  return errors;
}

model::Tensors AwqBlock::folded(const Parts& parts) const {
  auto tensors = in_.stored;
  model::Folds used;
  for (const auto& [producer, scales] : folds_)
    if (parts.edges.count(producer)) used.insert({producer, scales});
  model::fold_block(spec_, in_.block, used, tensors, in_.model.stored_dtype());
  return tensors;
}

const AwqBlock::Quantized& AwqBlock::quantized(const model::LinearSpec& linear, const Parts& parts, const model::Tensors& folded,
                                               const Moments& weighing) {
  std::string key = linear.path + (parts.clip ? " clip" : "");
  std::optional<mx::array> columns;
  for (const auto& edge : edges_) {
    if (!parts.edges.count(edge.producer)) continue;
    const bool scaled = reads(edge, linear.path);
    if (scaled) columns = model::column_scales(edge, folds_.at(edge.producer));
    if (scaled || edge.producer == linear.path) key += " " + edge.producer;
  }
  if (const auto it = cache_.find(key); it != cache_.end()) return it->second;
  const auto& format = *format_of(linear.path);
  const auto& weight = folded.at(linear.path + ".weight");
  const auto dtype = in_.model.stored_dtype();
  codec::Packed packed{mx::array(0), mx::array(0), std::nullopt};
  if (parts.clip && format.mode == codec::Mode::affine && linear.reads > 0) {
    auto importance = mean_squares(weighing.at(linear.path));
    // What reads x/s weighs its columns with the square of that.
    if (columns) importance = mx::divide(importance, mx::square(*columns));
    packed = codec::range_search(weight, format, importance, dtype).packed;
  } else {
    packed = codec::quantize(mx::astype(weight, dtype), format);
  }
  auto dense = codec::dequantize(packed, format, dtype);
  if (in_.model.compute_dtype() != dtype) dense = mx::astype(dense, in_.model.compute_dtype());
  mx::eval(packed.codes, packed.scales, dense);
  if (packed.biases) mx::eval(*packed.biases);
  return cache_.insert({key, {packed, dense}}).first->second;
}

AwqSolution AwqBlock::build(const Parts& parts, const Moments& weighing) {
  AwqSolution solution;
  const auto tensors = folded(parts);
  solution.clipped = parts.clip;
  for (const auto& producer : parts.edges) solution.folds.insert({producer, folds_.at(producer)});
  std::vector<mx::array> all;
  for (const auto& [name, tensor] : tensors) {
    auto stored = mx::astype(tensor, in_.model.stored_dtype());
    solution.packed.insert({name, stored});
    solution.dense.insert({name, mx::astype(stored, in_.model.compute_dtype())});
  }
  for (const auto* linear : spec_.blocks[in_.block].linears()) {
    if (!format_of(linear->path)) continue;
    const auto& q = quantized(*linear, parts, tensors, weighing);
    model::put_packed(solution.packed, linear->path, q.packed);
    solution.dense.insert_or_assign(linear->path + ".weight", q.dense);
  }
  for (const auto* map : {&solution.packed, &solution.dense})
    for (const auto& [name, tensor] : *map) all.push_back(tensor);
  mx::eval(all);
  return solution;
}

/// How far the sub-layer that reads the edge is off when its readers alone are quantized, with the scales that folds_ has for it.
double AwqBlock::sub_layer_error(const model::Edge& edge, const Moments& weighing) {
  const Parts parts{{edge.producer}, in_.options.clip};
  const auto tensors = folded(parts);
  const auto compute = in_.model.compute_dtype();
  auto judged = in_.full;
  const auto take = [&](const std::string& path) { judged.insert_or_assign(path + ".weight", mx::astype(tensors.at(path + ".weight"), compute)); };
  take(edge.producer);
  for (const auto* linear : spec_.blocks[in_.block].linears()) {
    if (!reads(edge, linear->path)) continue;
    if (format_of(linear->path))
      judged.insert_or_assign(linear->path + ".weight", quantized(*linear, parts, tensors, weighing).dense);
    else
      take(linear->path);
  }
  cache_.clear();  // its keys do not tell candidates apart
  return sum(in_.behind_step.contains(edge.step) ? step_error(judged, edge.step) : block_error(judged));
}

void AwqBlock::choose(const Moments& choosing, const Moments& weighing) {
  const auto start = Clock::now();
  const auto dtype = in_.model.stored_dtype();
  for (const auto& edge : edges_) {
    std::vector<quantize::Reader> readers;
    for (const auto& path : edge.consumers)
      if (const auto* format = format_of(path)) readers.push_back({f32(in_.stored.at(path + ".weight")), *format, choosing.at(path)});
    if (readers.empty()) continue;
    const auto search = quantize::search_scales(edge, readers, in_.options, dtype);
    if (search.candidates.empty()) continue;
    // What a norm's storage makes of the scales is what they are.
    const auto use = [&](const mx::array& scales) {
      auto tensors = in_.stored;
      auto effective = model::fold_producer(edge, scales, tensors, dtype);
      effective.eval();
      folds_.insert_or_assign(edge.producer, effective);
    };
    auto best = search.candidates.front().scales;
    if (edge.consumers.size() > 1 && search.candidates.size() > 1) {
      std::optional<double> least;
      for (const auto& candidate : search.candidates) {
        use(candidate.scales);
        const double error = sub_layer_error(edge, weighing);
        if (!least || error < *least) least = error, best = candidate.scales;
      }
    }
    use(best);
  }
  search_time += seconds_since(start);
}

AwqSolution AwqBlock::judged(const Parts& parts, const Moments& weighing) {
  auto solution = build(parts, weighing);
  solution.error = block_error(solution.dense);
  return solution;
}

AwqSolution AwqBlock::gate(const Moments& weighing) {
  const auto start = Clock::now();
  const auto plain = judged({{}, false}, weighing);
  Parts all{{}, in_.options.clip};
  for (const auto& [producer, scales] : folds_) all.edges.insert(producer);
  kept_ = all;
  auto best = judged(kept_, weighing);
  const auto try_without = [&](const std::string& name, const Parts& less) {
    auto solution = judged(less, weighing);
    if (clearly_below(best.error, solution.error)) return;
    solution.undone = best.undone;
    solution.undone.push_back(name);
    best = std::move(solution);
    kept_ = less;
  };
  for (const auto& producer : all.edges) {
    auto less = kept_;
    less.edges.erase(producer);
    try_without(producer, less);
  }
  if (kept_.clip) try_without("clip", {kept_.edges, false});
  // NaN included: plain rounding is what everything else must beat.
  if (!(sum(best.error) <= sum(plain.error))) {
    best = plain;
    best.undone.assign(all.edges.begin(), all.edges.end());
    if (all.clip) best.undone.push_back("clip");
    kept_ = {{}, false};
  }
  best.plain_error = plain.error;
  gate_time += seconds_since(start);
  return best;
}

AwqSolution AwqBlock::solve(const Moments& choosing, const Moments& weighing) {
  folds_.clear();
  cache_.clear();
  choose(choosing, weighing);
  return gate(weighing);
}

AwqSolution AwqBlock::reweighed(const Moments& weighing) {
  const auto start = Clock::now();
  cache_.clear();
  auto solution = judged(kept_, weighing);
  gate_time += seconds_since(start);
  return solution;
}

}  // namespace lquant::pipeline
