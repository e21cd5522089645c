// Scales are searched edge by edge on the readers' own output errors (quantize/awq.h). Where several linears read an edge, and their errors do not
// simply add up, the best few candidates are judged by what the sub-layer then puts out. In the end the whole block is judged: parts are taken
// away one by one, and stay away where its outputs come nearer to the full-precision model's.
#include "pipeline/awq_block.h"

#include <mlx/mlx.h>

#include <chrono>

#include "codec/quantize.h"
#include "codec/range_search.h"

namespace lquant::pipeline {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }

/// Mean squares of the inputs, f32 [K], or [E, K] of experts.
mx::array mean_squares(const std::vector<calibration::Hessian>& hessians) {
  std::vector<mx::array> all;
  for (const auto& h : hessians) all.push_back(mx::multiply(mx::diagonal(h.moment), mx::array(static_cast<float>(1 / std::max(1.0, h.tokens)))));
  return all.size() == 1 ? all.front() : mx::stack(all);
}

}  // namespace

std::vector<model::Edge> AwqBlock::edges() const {
  std::vector<model::Edge> own;
  for (auto& edge : spec_.edges())
    if (edge.block == in_.block) own.push_back(edge);
  return own;
}

const codec::Format* AwqBlock::format_of(const std::string& path) const {
  const auto it = in_.plan.formats.find(path);
  return it == in_.plan.formats.end() ? nullptr : &it->second;
}

double AwqBlock::distance(std::size_t judge, const mx::array& states, const mx::array& reference) const {
  const auto& counted = in_.rows.counted[in_.judges[judge]];
  const auto rows = [&](const mx::array& x) {
    const auto flat = f32(mx::reshape(x, {-1, x.shape(-1)}));
    return counted ? mx::take(flat, *counted, 0) : flat;
  };
  return mx::sum(mx::square(mx::subtract(rows(states), rows(reference)))).item<float>();
}

double AwqBlock::attention_error(const model::Tensors& tensors) const {
  double error = 0;
  for (std::size_t j = 0; j < in_.judges.size(); ++j) {
    model::Context context;
    context.segments = in_.rows.segments[in_.judges[j]];
    auto cut = model::attention_input(spec_, in_.block, tensors, {}, in_.student.states(in_.judges[j]), context);
    cut = model::attention_output(spec_, in_.block, tensors, {}, cut, context);
    error += distance(j, model::mlp_input(spec_, in_.block, tensors, {}, cut, context).residual, in_.behind_attention[j]);
  }
  return error;
}

double AwqBlock::block_error(const model::Tensors& tensors) const {
  double error = 0;
  for (std::size_t j = 0; j < in_.judges.size(); ++j) {
    model::Context context;
    context.segments = in_.rows.segments[in_.judges[j]];
    error += distance(j, model::block(spec_, in_.block, tensors, {}, in_.student.states(in_.judges[j]), context), in_.behind_block[j]);
  }
  return error;
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
  for (const auto& edge : edges()) {
    if (!parts.edges.count(edge.producer)) continue;
    const bool reads = std::find(edge.consumers.begin(), edge.consumers.end(), linear.path) != edge.consumers.end();
    if (reads) columns = model::column_scales(edge, folds_.at(edge.producer));
    if (reads || edge.producer == linear.path) key += " " + edge.producer;
  }
  if (const auto it = cache_.find(key); it != cache_.end()) return it->second;
  const auto& format = *format_of(linear.path);
  const auto& weight = folded.at(linear.path + ".weight");
  const auto dtype = in_.model.stored_dtype();
  codec::Packed packed{mx::array(0), mx::array(0), std::nullopt};
  if (parts.clip && format.mode == codec::Mode::affine) {
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
    solution.packed.insert_or_assign(linear->path + ".weight", q.packed.codes);
    solution.packed.insert_or_assign(linear->path + ".scales", q.packed.scales);
    if (q.packed.biases) solution.packed.insert_or_assign(linear->path + ".biases", *q.packed.biases);
    solution.dense.insert_or_assign(linear->path + ".weight", q.dense);
  }
  for (const auto* map : {&solution.packed, &solution.dense})
    for (const auto& [name, tensor] : *map) all.push_back(tensor);
  mx::eval(all);
  return solution;
}

model::Folds AwqBlock::choose(const Moments& choosing, const Moments& weighing) {
  const auto start = Clock::now();
  const auto dtype = in_.model.stored_dtype();
  for (const auto& edge : edges()) {
    std::vector<quantize::Reader> readers;
    for (const auto& path : edge.consumers)
      if (const auto* format = format_of(path)) readers.push_back({f32(in_.stored.at(path + ".weight")), *format, choosing.at(path)});
    if (readers.empty()) continue;
    auto search = quantize::search_scales(edge, readers, in_.options, dtype);
    if (search.candidates.empty()) continue;
    auto best = search.candidates.front().scales;
    // The effective scales, which a norm's storage rounds, are the ones to remember.
    const auto effective = [&](const mx::array& scales) {
      auto tensors = in_.stored;
      auto used = model::fold(edge, scales, tensors, dtype);
      used.eval();
      return used;
    };
    if (edge.consumers.size() > 1 && search.candidates.size() > 1) {
      double least = 0;
      for (const auto& candidate : search.candidates) {
        folds_.insert_or_assign(edge.producer, effective(candidate.scales));
        const Parts parts{{edge.producer}, in_.options.clip};
        const auto tensors = folded(parts);
        auto judged = in_.full;
        for (const auto& [name, tensor] : tensors)
          if (name == edge.producer + ".weight") judged.insert_or_assign(name, mx::astype(tensor, in_.model.compute_dtype()));
        for (const auto* linear : spec_.blocks[in_.block].linears()) {
          if (std::find(edge.consumers.begin(), edge.consumers.end(), linear->path) == edge.consumers.end()) continue;
          judged.insert_or_assign(linear->path + ".weight",
                                  format_of(linear->path) ? quantized(*linear, parts, tensors, weighing).dense
                                                          : mx::astype(tensors.at(linear->path + ".weight"), in_.model.compute_dtype()));
        }
        cache_.clear();
        const bool attention = edge.producer == spec_.blocks[in_.block].attention_norm.path;
        const double error = attention ? attention_error(judged) : block_error(judged);
        if (&candidate == &search.candidates.front() || error < least) least = error, best = candidate.scales;
      }
    }
    folds_.insert_or_assign(edge.producer, effective(best));
  }
  search_time += seconds_since(start);
  return folds_;
}

AwqSolution AwqBlock::gate(const Moments& weighing) {
  const auto start = Clock::now();
  const auto judged = [&](const Parts& parts) {
    auto solution = build(parts, weighing);
    solution.error = block_error(solution.dense);
    return solution;
  };
  const auto plain = judged({{}, false});
  Parts parts{{}, in_.options.clip};
  for (const auto& [producer, scales] : folds_) parts.edges.insert(producer);
  auto best = judged(parts);
  std::vector<std::string> undone;
  const auto try_without = [&](const std::string& name, const Parts& less) {
    auto solution = judged(less);
    if (!(solution.error < best.error)) return;
    best = std::move(solution);
    parts = less;
    undone.push_back(name);
  };
  for (const auto& [producer, scales] : folds_) {
    auto less = parts;
    less.edges.erase(producer);
    try_without(producer, less);
  }
  if (parts.clip) try_without("clip", {parts.edges, false});
  // NaN included: plain rounding is what everything else must beat.
  if (!(best.error <= plain.error)) {
    undone.clear();
    for (const auto& [producer, scales] : folds_) undone.push_back(producer);
    if (in_.options.clip) undone.push_back("clip");
    best = plain;
  }
  best.undone = undone;
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

}  // namespace lquant::pipeline
