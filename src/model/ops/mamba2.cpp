#include "model/ops/mamba2.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/ssm.h"
#include "model/norm.h"
#include "model/ops/parts.h"
#include "model/ops/taps.h"

namespace lquant::model {

void HeadRecurrence::contents(Contents& all) const {
  for (const auto* parameter : {&dt_bias, &a_log, &d}) all.parameters.push_back(parameter);
}

mx::array HeadRecurrence::apply(const Scope& scope, const mx::array& x, const mx::array& b, const mx::array& c, const mx::array& dt) const {
  const auto& context = scope.context;
  if (context.branches) throw std::invalid_argument("[model] a recurrent state does not go on from a beginning computed once; give no branches");
  const auto f32 = [&](const ParameterSpec& parameter) { return mx::astype(scope.tensor(parameter.path), mx::float32); };
  const auto steps = mx::logaddexp(mx::add(mx::astype(dt, mx::float32), f32(dt_bias)), mx::array(0.0f));
  const auto limit = [](double value) { return mx::array(static_cast<float>(value)); };
  const auto split = [&](const mx::array& all, int count) { return mx::unflatten(all, -1, {count, -1}); };
  const auto by_head = split(x, heads);
  kernels::StateSpace in{by_head, mx::clip(steps, limit(least), limit(most)), mx::negative(mx::exp(f32(a_log))), split(b, groups), split(c, groups)};
  in.segments = context.segments;
  if (context.cache) in.state = context.cache->kept(scope.block, a_log.path);
  const auto [y, state] = kernels::state_space(in);
  if (context.cache) context.cache->keep(scope.block, a_log.path, state);
  // mlx_lm rounds both terms before it adds them.
  const auto own = mx::multiply(by_head, mx::expand_dims(mx::astype(scope.tensor(d.path), x.dtype()), -1));
  return mx::flatten(mx::add(mx::astype(y, x.dtype()), own), -2, -1);
}

mx::array columns(const mx::array& x, int first, int count) {
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start.back() = first;
  stop.back() = first + count;
  return mx::slice(x, start, stop);
}

mx::array convolved_silu(const Scope& scope, const ParameterSpec& taps, const std::optional<ParameterSpec>& bias, const mx::array& x) {
  auto y = convolved(scope, taps, x);
  if (bias) y = mx::add(y, mx::astype(scope.tensor(bias->path), y.dtype()));
  return kernels::activate(y, kernels::Activation::silu);
}

Edge inner_norm_edge(const NormSpec& norm, const LinearSpec& reader) {
  Edge edge;
  edge.producer = norm.path;
  edge.norm = norm;
  edge.consumers = {reader.path};
  edge.channels = edge.head_dim = norm.size;
  return edge;
}

void Mamba2::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&input, op, first_stage});
  all.readings.push_back({&output, op, first_stage + 1});
  all.parameters.push_back(&taps);
  if (taps_bias) all.parameters.push_back(&*taps_bias);
  recurrence.contents(all);
  if (norm) all.norms.push_back(&*norm);
}

Flow Mamba2::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(input, normed);
  return {{normed}, {}};
}

Flow Mamba2::advance(const Scope& scope, int, const Flow& at) const {
  const auto all = products_of_parts(scope, input, at.inputs[0]);
  const auto& gate = all[0];
  const auto xbc = convolved_silu(scope, taps, taps_bias, all[1]);
  const int inner = recurrence.heads * recurrence.head_dim, shared = recurrence.groups * recurrence.state;
  auto y = recurrence.apply(scope, columns(xbc, 0, inner), columns(xbc, inner, shared), columns(xbc, inner + shared, shared), all[2]);
  const auto gated = [&](const mx::array& x) { return kernels::gated(gate, x, kernels::Activation::silu); };
  if (!norm)
    y = gated(y);
  else
    y = gate_behind_norm ? gated(normed(scope.tensors, *norm, y)) : normed(scope.tensors, *norm, gated(y));
  scope.observe(output, y);
  return {{y}, {}};
}

mx::array Mamba2::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

std::vector<Edge> Mamba2::edges() const {
  if (!norm) return {};
  return {inner_norm_edge(*norm, output)};
}

}  // namespace lquant::model
