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
#include "pipeline/folds.h"
#include "pipeline/memory.h"

namespace lquant::pipeline {
namespace {

using Clock = std::chrono::steady_clock;

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }

bool reads(const model::Edge& edge, const std::string& path) {
  return std::find(edge.consumers.begin(), edge.consumers.end(), path) != edge.consumers.end();
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

AwqBlock::AwqBlock(const Inputs& inputs) : in_(inputs), spec_(inputs.model.spec()), edges_(spec_.edges_of(in_.source.block())) {}

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

RowErrors AwqBlock::error_of(const Candidate& candidate, std::optional<int> step) const {
  const auto& block = spec_.blocks[in_.source.block()];
  const auto linears = block.linears();
  const int stages = model::stages(block), last = step ? model::first_stage(block, *step + 1) : stages;
  // Experts are made dense stage by stage, and all batches go together then; else each goes alone.
  const bool in_stages = std::any_of(linears.begin(), linears.end(), [](const auto* linear) { return linear->routed(); });
  RowErrors errors;
  for (std::size_t first = 0; first < in_.judges.size();) {
    const std::size_t behind = in_stages ? in_.judges.size() : first + 1;
    std::vector<model::Halted> at;
    for (auto j = first; j < behind; ++j) at.push_back({in_.student.states(in_.judges[j])});
    for (int stage = 0; stage <= last; ++stage) {
      auto tensors = candidate.tensors;
      for (const auto* linear : in_.source.read_before(stage)) tensors.insert({linear->path + ".weight", candidate.weight(*linear)});
      for (auto j = first; j < behind; ++j) {
        model::Context context;
        context.segments = in_.rows.segments[in_.judges[j]];
        const auto visit = in_.student.visit(in_.judges[j], in_.source.block());
        auto& here = at[j - first];
        here = stage == stages ? model::Halted{model::leave(spec_, visit, tensors, {}, here, context)}
                               : model::advance(spec_, visit, stage, tensors, {}, here, context);
        if (in_stages) mx::eval(here.arrays());
      }
    }
    for (auto j = first; j < behind; ++j) add_distance(errors, j, at[j - first].residual, step ? in_.behind_step.at(*step)[j] : in_.behind_block[j]);
    first = behind;
  }
  return errors;
}

/// Of the block as it is written.
RowErrors AwqBlock::block_error(const model::Tensors& packed) const {
  auto kept = packed;
  const auto take = [&](const model::LinearSpec& linear) {
    model::Tensors own;
    for (const char* part : {".weight", ".scales", ".biases"})
      if (const auto it = packed.find(linear.path + part); it != packed.end()) own.insert(*it);
    return own;
  };
  for (const auto* linear : spec_.blocks[in_.source.block()].linears())
    if (linear->routed())
      for (const auto& [name, tensor] : take(*linear)) kept.erase(name);
  return error_of({walked(in_.model, in_.plan, kept),
                   [&](const model::LinearSpec& linear) { return walked(in_.model, in_.plan, take(linear)).at(linear.path + ".weight"); }},
                  std::nullopt);
}

model::Folds AwqBlock::used(const Parts& parts) const {
  model::Folds used;
  for (const auto& [producer, scales] : folds_)
    if (parts.edges.count(producer)) used.insert({producer, scales});
  return used;
}

std::string AwqBlock::key_of(const model::LinearSpec& linear, const Parts& parts) const {
  std::string key = linear.path + (parts.clip ? " clip" : "");
  for (const auto& edge : edges_)
    if (parts.edges.count(edge.producer) && (reads(edge, linear.path) || edge.producer == linear.path)) key += " " + edge.producer;
  return key;
}

codec::Packed AwqBlock::rounded(const mx::array& weight, const codec::Format& format, const std::optional<mx::array>& importance) const {
  const auto dtype = in_.model.stored_dtype();
  auto packed = importance ? codec::range_search(weight, format, importance, dtype).packed : codec::quantize(mx::astype(weight, dtype), format);
  mx::eval(packed.codes, packed.scales);
  if (packed.biases) packed.biases->eval();
  return packed;
}

const codec::Packed& AwqBlock::quantized(const model::LinearSpec& linear, const Parts& parts, const Weighing& weighing) {
  const auto key = key_of(linear, parts);
  if (const auto it = cache_.find(key); it != cache_.end()) return it->second;
  const auto& format = *format_of(linear.path);
  auto folds = used(parts);
  std::optional<mx::array> importance;
  if (parts.clip && format.mode == codec::Mode::affine && linear.reads > 0) {
    importance = weighing.at(linear.path);
    // What reads x/s weighs its columns with the square of that.
    for (const auto& edge : edges_)
      if (folds.contains(edge.producer) && reads(edge, linear.path))
        importance = mx::divide(weighing.at(linear.path), mx::square(model::column_scales(edge, folds.at(edge.producer))));
  }
  const auto weight = in_.source.weight(linear);
  const auto folded = [&](const mx::array& w) { return model::folded_weight(spec_, in_.source.block(), folds, linear.path, w); };
  if (!linear.routed()) return cache_.insert({key, rounded(folded(weight), format, importance)}).first->second;
  // Scaled weights are f32: one expert's at a time.
  const auto of_expert = [](const mx::array& x, int e) {
    auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
    start[0] = e, stop[0] = e + 1;
    return mx::slice(x, start, stop);
  };
  const auto all = folds;
  std::vector<mx::array> codes, scales, biases;
  for (int e = 0; e < linear.experts; ++e) {
    for (auto& [producer, s] : folds)
      if (all.at(producer).ndim() == 2) s = of_expert(all.at(producer), e);
    const bool own = importance && importance->ndim() == 2;
    const auto part = rounded(folded(of_expert(weight, e)), format, own ? of_expert(*importance, e) : importance);
    codes.push_back(part.codes), scales.push_back(part.scales);
    if (part.biases) biases.push_back(*part.biases);
  }
  codec::Packed packed{mx::concatenate(codes, 0), mx::concatenate(scales, 0), std::nullopt};
  if (!biases.empty()) packed.biases = mx::concatenate(biases, 0);
  mx::eval(packed.codes, packed.scales);
  if (packed.biases) packed.biases->eval();
  return cache_.insert({key, packed}).first->second;
}

AwqSolution AwqBlock::build(const Parts& parts, const Weighing& weighing) {
  AwqSolution solution;
  solution.clipped = parts.clip;
  solution.folds = used(parts);
  const auto stored = in_.model.stored_dtype();
  auto tensors = in_.source.stored();
  model::fold_block(spec_, in_.source.block(), solution.folds, tensors, stored);
  solution.packed = in_.model.cast(std::move(tensors), stored);
  for (const auto* linear : spec_.blocks[in_.source.block()].linears()) {
    if (format_of(linear->path)) {
      model::put_packed(solution.packed, linear->path, quantized(*linear, parts, weighing));
    } else if (linear->routed()) {
      const auto weight = model::folded_weight(spec_, in_.source.block(), solution.folds, linear->path, in_.source.weight(*linear));
      solution.packed.insert({linear->path + ".weight", mx::astype(weight, stored)});
    }
  }
  std::vector<mx::array> all;
  for (const auto& [name, tensor] : solution.packed) all.push_back(tensor);
  mx::eval(all);
  return solution;
}

/// How far the sub-layer that reads the edge is off when its readers alone are quantized, with the scales that folds_ has for it.
double AwqBlock::sub_layer_error(const model::Edge& edge, const Weighing& weighing) {
  const Parts parts{{edge.producer}, in_.options.clip};
  const auto folds = used(parts);
  const int block = in_.source.block();
  const auto linears = spec_.blocks[block].linears();
  cache_.clear();  // its keys do not tell candidates apart
  for (const auto* linear : linears)
    if (reads(edge, linear->path) && format_of(linear->path)) quantized(*linear, parts, weighing);
  const auto compute = in_.model.compute_dtype();
  const auto weight_of = [&](const model::LinearSpec& linear) {
    const auto* format = reads(edge, linear.path) ? format_of(linear.path) : nullptr;
    auto weight = mx::astype(format ? codec::dequantize(quantized(linear, parts, weighing), *format, in_.model.stored_dtype())
                                    : model::folded_weight(spec_, block, folds, linear.path, in_.source.weight(linear)),
                             compute);
    weight.eval();
    return weight;
  };
  auto judged = in_.source.full();
  if (edge.norm) {
    auto folded = in_.source.stored();
    model::fold_block(spec_, block, folds, folded, in_.model.stored_dtype());
    judged.insert_or_assign(edge.producer + ".weight", mx::astype(folded.at(edge.producer + ".weight"), compute));
  }
  for (const auto* linear : linears)
    if (!linear->routed() && (reads(edge, linear->path) || linear->path == edge.producer))
      judged.insert_or_assign(linear->path + ".weight", weight_of(*linear));
  const double error = sum(error_of({judged, weight_of}, in_.behind_step.contains(edge.step) ? std::optional(edge.step) : std::nullopt));
  cache_.clear();
  return error;
}

void AwqBlock::choose(const Choosing& choosing, const Weighing& weighing) {
  const auto start = Clock::now();
  const auto dtype = in_.model.stored_dtype();
  const auto linears = spec_.blocks[in_.source.block()].linears();
  const auto weight_of = [&](const std::string& path) {
    return in_.source.weight(**std::find_if(linears.begin(), linears.end(), [&](const auto* linear) { return linear->path == path; }));
  };
  for (const auto& edge : edges_) {
    std::vector<quantize::Reader> readers;
    for (const auto& path : edge.consumers)
      if (const auto* format = format_of(path)) readers.push_back({f32(quantize::judging_rows(weight_of(path))), *format, choosing.at(path)});
    if (readers.empty()) continue;
    const auto search = quantize::search_scales(edge, readers, in_.options, dtype);
    if (search.candidates.empty()) continue;
    // What a norm's storage makes of the scales is what they are.
    const auto use = [&](const mx::array& scales) {
      auto tensors = in_.source.stored();
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

AwqSolution AwqBlock::judged(const Parts& parts, const Weighing& weighing) {
  auto solution = build(parts, weighing);
  release_freed_memory(spec_);
  solution.error = block_error(solution.packed);
  return solution;
}

void AwqBlock::keep(const Parts& parts) {
  std::set<std::string> keys;
  for (const auto* linear : spec_.blocks[in_.source.block()].linears()) keys.insert(key_of(*linear, parts));
  std::erase_if(cache_, [&](const auto& entry) { return !keys.contains(entry.first); });
}

AwqSolution AwqBlock::gate(const Weighing& weighing) {
  const auto start = Clock::now();
  const auto plain_error = judged({{}, false}, weighing).error;
  cache_.clear();
  Parts all{{}, in_.options.clip};
  for (const auto& [producer, scales] : folds_) all.edges.insert(producer);
  kept_ = all;
  auto best = judged(kept_, weighing);
  const auto try_without = [&](const std::string& name, const Parts& less) {
    auto solution = judged(less, weighing);
    if (!clearly_below(best.error, solution.error)) {
      solution.undone = best.undone;
      solution.undone.push_back(name);
      best = std::move(solution);
      kept_ = less;
    }
    keep(kept_);
  };
  for (const auto& producer : all.edges) {
    auto less = kept_;
    less.edges.erase(producer);
    try_without(producer, less);
  }
  if (kept_.clip) try_without("clip", {kept_.edges, false});
  // NaN included: plain rounding is what everything else must beat.
  if (!(sum(best.error) <= sum(plain_error))) {
    kept_ = {{}, false};
    best = judged(kept_, weighing);
    best.undone.assign(all.edges.begin(), all.edges.end());
    if (all.clip) best.undone.push_back("clip");
  }
  best.plain_error = plain_error;
  gate_time += seconds_since(start);
  return best;
}

AwqSolution AwqBlock::solve(const Choosing& choosing, const Weighing& weighing) {
  folds_.clear();
  cache_.clear();
  choose(choosing, weighing);
  return gate(weighing);
}

AwqSolution AwqBlock::reweighed(const Weighing& weighing) {
  const auto start = Clock::now();
  cache_.clear();
  auto solution = judged(kept_, weighing);
  gate_time += seconds_since(start);
  return solution;
}

}  // namespace lquant::pipeline
