// Linears that read one input are quantized together, so that of experts each Hessian is summed once; both with AWQ's scales and without, where there
// are some to try, for all readers of an edge take them or none.
#include "pipeline/gptq_linears.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>

#include "codec/quantize.h"
#include "model/pack.h"
#include "pipeline/block_run.h"
#include "pipeline/experts.h"
#include "pipeline/memory.h"
#include "quantize/gptq.h"

namespace lquant::pipeline {
using Clock = std::chrono::steady_clock;

namespace {

// AWQ's scales must lower the output error by this share: rounding anew moves it by about as much either way.
constexpr double kWorthScaling = 0.01;

}  // namespace

GptqLinears::GptqLinears(const Inputs& inputs, GptqResult& result) : in_(inputs), result_(result) {
  for (const auto& edge : in_.model.spec().edges())
    if (in_.folds.contains(edge.producer)) edges_.push_back(edge);
}

void GptqLinears::begin_block() {
  plain_error_ = error_ = 0;
  chosen_.clear();
}

const quantize::FactoredHessian& GptqLinears::factored(const std::string& path, const calibration::Hessian& hessian,
                                                       std::map<int, quantize::FactoredHessian>& known, int group_size) {
  if (const auto it = known.find(group_size); it != known.end()) return it->second;
  const auto start = Clock::now();
  const auto& made = known.emplace(group_size, quantize::FactoredHessian(path, hessian, group_size, in_.options.method)).first->second;
  result_.factor_time += seconds_since(start);
  return made;
}

GptqLinears::Moments& GptqLinears::moments_of(const std::string& path) {
  const auto& owner = hessians.owner(path);
  if (moments_ && owner_ == owner) return *moments_;
  owner_ = owner;
  moments_.reset();  // before the next are made
  const auto& train = hessians.of(path);
  if (held_hessians.has(path)) {
    const auto& held = held_hessians.of(path);
    moments_ = Moments{calibration::together(train, held), train, held, {}, {}};
  } else {
    moments_ = Moments{train, std::nullopt, std::nullopt, {}, {}};
  }
  return *moments_;
}

quantize::GptqResult GptqLinears::quantize_matrix(const std::string& path, const mx::array& weight, Moments& moments, const codec::Format& format) {
  auto method = in_.options.method;
  const auto& all = factored(path, moments.all, moments.all_factored, format.group_size);
  if (moments.all.shift) {
    if (in_.options.asymmetric == Asymmetric::on) {
      method.correction = 1;
    } else if (moments.held) {
      const auto& train = factored(path, *moments.train, moments.train_factored, format.group_size);
      const auto start = Clock::now();
      method.correction = quantize::correction_share(weight, train, *moments.held);
      result_.factor_time += seconds_since(start);
    }
    result_.corrected += method.correction;
    ++correctable_;
  }
  auto done = quantize::gptq(path, weight, all, format, method);
  result_.search_time += done.search_time;
  result_.factor_time += done.factor_time;
  result_.solve_time += done.solve_time;
  if (done.damp > method.damp) in_.context.warn(fmt::format("{}: its Hessian needed a damping of {:.2g}; more rows help", path, done.damp));
  return done;
}

void GptqLinears::quantize_matrix(Task& task, int e, Moments& moments) {
  const auto& linear = *task.linear;
  const auto format = in_.plan.formats.at(linear.path);
  const auto name = linear.experts == 0 ? linear.path : fmt::format("{} (matrix {})", linear.path, e);
  auto weight = *task.weight;
  if (linear.experts > 0) weight = mx::reshape(mx::slice(weight, {e, 0, 0}, {e + 1, linear.out, linear.in}), {linear.out, linear.in});
  const auto quantize = [&](const mx::array& w, Moments& own) {
    const auto done = quantize_matrix(name, w, own, format);
    const double judged = task.edge ? quantize::output_error(w, done.packed, format, own.held ? *own.held : own.all) : 0;
    return Quantized{done.packed, done.plain_error, done.error, judged};
  };
  task.matrices[0][e] = quantize(weight, moments);
  if (!task.edge) return;
  auto columns = model::column_scales(*task.edge, in_.folds.at(task.edge->producer));
  if (columns.ndim() == 2) columns = mx::take(columns, e, 0);
  const auto rescaled = [&](const std::optional<calibration::Hessian>& h) {
    return h ? std::optional(calibration::rescaled(*h, columns)) : std::nullopt;
  };
  Moments scaled{calibration::rescaled(moments.all, columns), rescaled(moments.train), rescaled(moments.held), {}, {}};
  task.matrices[1][e] = quantize(mx::astype(mx::multiply(weight, columns), in_.model.stored_dtype()), scaled);
}

/// Linears that read one input, with all of their weights in memory. Of experts there is one Hessian at a time, and it is summed once for all.
void GptqLinears::quantize_together(std::vector<Task>& tasks, const WeightOf& weight_of) {
  for (auto& task : tasks) {
    task.weight = weight_of(*task.linear);
    for (auto& matrices : task.matrices) matrices.resize(std::max(1, task.linear->experts));
  }
  const auto& first = *tasks.front().linear;
  if (hessians.by_expert(first.path)) {
    const StackInputs inputs{&hessians.experts(first.path)};
    for (const auto& task : tasks) warn_of_starved(*task.linear, inputs, in_.context);
    each_hessian(first, inputs, [&](int e, const calibration::Hessian& h) {
      Moments moments{h, std::nullopt, std::nullopt, {}, {}};
      for (auto& task : tasks) quantize_matrix(task, e, moments);
      in_.context.check();
    });
  } else {
    auto& moments = moments_of(first.path);
    for (auto& task : tasks)
      for (int e = 0; e < std::max(1, task.linear->experts); ++e) quantize_matrix(task, e, moments);
  }
  for (auto& task : tasks) {
    task.weight.reset();
    for (int i = 0; i < (task.edge ? 2 : 1); ++i) task.found[i] = joined(*task.linear, std::move(task.matrices[i]));
  }
}

GptqLinears::Quantized GptqLinears::joined(const model::LinearSpec& linear, std::vector<Quantized> matrices) const {
  if (linear.experts == 0) return matrices.front();
  Quantized all;
  std::vector<mx::array> codes, scales, biases;
  for (const auto& q : matrices) {
    codes.push_back(q.packed.codes), scales.push_back(q.packed.scales), biases.push_back(*q.packed.biases);
    all.plain_error += q.plain_error, all.error += q.error, all.judged += q.judged;
  }
  all.packed = {mx::stack(codes), mx::stack(scales), mx::stack(biases)};
  mx::eval(all.packed.codes, all.packed.scales, *all.packed.biases);
  return all;
}

/// In a format that knows no feedback.
void GptqLinears::round(Task& task, const WeightOf& weight_of) {
  const auto& format = in_.plan.formats.at(task.linear->path);
  const auto weight = weight_of(*task.linear);
  task.found[0].packed = codec::quantize(weight, format);
  if (!task.edge) return;
  auto columns = model::column_scales(*task.edge, in_.folds.at(task.edge->producer));
  if (columns.ndim() == 2) columns = mx::expand_dims(columns, -2);
  task.found[1].packed = codec::quantize(mx::astype(mx::multiply(weight, columns), in_.model.stored_dtype()), format);
}

mx::array GptqLinears::dense(const model::LinearSpec& linear, const model::Tensors& tensors) const {
  const auto& format = in_.plan.formats.at(linear.path);
  const auto stored = in_.model.stored_dtype();
  codec::Packed packed{tensors.at(linear.path + ".weight"), tensors.at(linear.path + ".scales"), std::nullopt};
  if (const auto biases = tensors.find(linear.path + ".biases"); biases != tensors.end()) packed.biases = biases->second;
  const auto* edge = scaled_edge(linear);
  const bool scaled = edge && chosen_.contains(edge->producer);
  auto weight = codec::dequantize(packed, format, scaled ? mx::float32 : stored);
  if (scaled) {
    auto columns = model::column_scales(*edge, chosen_.at(edge->producer));
    if (columns.ndim() == 2) columns = mx::expand_dims(columns, -2);
    weight = mx::astype(mx::divide(weight, columns), stored);
  }
  if (in_.model.compute_dtype() != stored) weight = mx::astype(weight, in_.model.compute_dtype());
  weight.eval();
  return weight;
}

const model::Edge* GptqLinears::scaled_edge(const model::LinearSpec& linear) const {
  for (const auto& edge : edges_)
    if (std::find(edge.consumers.begin(), edge.consumers.end(), linear.path) != edge.consumers.end()) return &edge;
  return nullptr;
}

void GptqLinears::quantize(const std::vector<const model::LinearSpec*>& linears, model::Tensors& tensors, const WeightOf& weight_of) {
  std::vector<std::vector<Task>> groups;     // of readers of one input
  std::map<std::string, std::size_t> place;  // in `groups`, of a stack's inputs
  for (const auto* linear : linears) {
    const auto& path = linear->path;
    const auto planned = in_.plan.formats.find(path);
    if (planned == in_.plan.formats.end() || tensors.contains(path + ".scales")) continue;
    const bool rounded = planned->second.mode != codec::Mode::affine;
    if (!rounded && !hessians.has(path)) continue;
    const bool shared = !rounded && hessians.by_expert(path);
    const auto [at, is_new] = place.emplace(shared ? hessians.owner(path) : path, groups.size());
    if (is_new) groups.emplace_back();
    groups[at->second].push_back({linear, scaled_edge(*linear), std::nullopt, {}, {}});
  }
  const auto take = [&](const Task& task, const Quantized& q) {
    model::put_packed(tensors, task.linear->path, q.packed);
    plain_error_ += q.plain_error, error_ += q.error;
  };
  std::map<const model::Edge*, std::vector<const Task*>> readers;  // of an edge with scales: all take them, or none
  for (auto& group : groups) {
    if (in_.plan.formats.at(group.front().linear->path).mode == codec::Mode::affine)
      quantize_together(group, weight_of);
    else
      round(group.front(), weight_of);
    for (const auto& task : group) {
      if (task.edge)
        readers[task.edge].push_back(&task);
      else
        take(task, task.found[0]);
    }
    in_.context.check();
  }
  for (const auto& [edge, tasks] : readers) {
    double gain = 0, error = 0;
    for (const auto* task : tasks) gain += task->found[0].judged - task->found[1].judged, error += task->found[0].error;
    const bool better = gain > kWorthScaling * error;
    if (better) chosen_.insert({edge->producer, in_.folds.at(edge->producer)});
    for (const auto* task : tasks) take(*task, task->found[better ? 1 : 0]);
  }
  moments_.reset();
  hessians.clear();
  held_hessians.clear();
  release_freed_memory(in_.model.spec());
}

}  // namespace lquant::pipeline
