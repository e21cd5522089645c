#include "model/ops/mamba.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/ssm.h"
#include "model/norm.h"
#include "model/ops/parts.h"

namespace lquant::model {
namespace {

/// x and dt [B, T, inner], b and c [B, T, state] → as x.
mx::array by_channel(const Scope& scope, const Mamba& op, const mx::array& x, const mx::array& b, const mx::array& c, const mx::array& dt) {
  const auto& context = scope.context;
  if (context.branches) throw std::invalid_argument("[model] a recurrent state does not go on from a beginning computed once; give no branches");
  const auto f32 = [](const mx::array& value) { return mx::astype(value, mx::float32); };
  const auto wide = f32(x);
  kernels::SelectiveScan in{wide, mx::logaddexp(f32(dt), mx::array(0.0f)), mx::negative(mx::exp(f32(scope.tensor(op.a_log->path)))), f32(b), f32(c)};
  in.segments = context.segments;
  if (context.cache) in.state = context.cache->kept(scope.block, op.a_log->path);
  const auto [y, state] = kernels::selective_scan(in);
  if (context.cache) context.cache->keep(scope.block, op.a_log->path, state);
  return mx::astype(mx::add(y, mx::multiply(f32(scope.tensor(op.d->path)), wide)), x.dtype());
}

}  // namespace

void Mamba::contents(int op, int first_stage, Contents& all) const {
  int stage = first_stage;
  for (const auto* linear : {&input, &select, &dt, &output}) all.readings.push_back({linear, op, stage++});
  all.parameters.push_back(&taps);
  for (const auto* parameter : {&taps_bias, &a_log, &d})
    if (*parameter) all.parameters.push_back(&**parameter);
  if (by_head) by_head->contents(all);
  for (const auto* norm : {&dt_norm, &b_norm, &c_norm})
    if (*norm) all.norms.push_back(&**norm);
}

Flow Mamba::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(input, normed);
  return {{normed}, {}};
}

Flow Mamba::advance(const Scope& scope, int stage, const Flow& at) const {
  Flow next;
  if (stage == 1) {
    const auto all = products_of_parts(scope, input, at.inputs[0]);
    next = {{convolved_silu(scope, taps, taps_bias, all[Input::x])}, {all[Input::z]}};
    scope.observe(select, next.inputs[0]);
  } else if (stage == 2) {
    const auto all = products_of_parts(scope, select, at.inputs[0]);
    const auto in_norm = [&](const std::optional<NormSpec>& norm, const mx::array& y) { return norm ? normed(scope.tensors, *norm, y) : y; };
    next = {{in_norm(dt_norm, all[Select::dts])}, {at.inputs[0], at.kept[0], in_norm(b_norm, all[Select::b]), in_norm(c_norm, all[Select::c])}};
    scope.observe(dt, next.inputs[0]);
  } else {
    const auto steps = kernels::linear(at.inputs[0], scope.weight(dt));
    const auto &x = at.kept[0], &b = at.kept[2], &c = at.kept[3];
    const auto y = by_head ? by_head->apply(scope, x, b, c, steps) : by_channel(scope, *this, x, b, c, steps);
    next = {{kernels::gated(at.kept[1], y, kernels::Activation::silu)}, {}};
    scope.observe(output, next.inputs[0]);
  }
  return next;
}

mx::array Mamba::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

/// Nothing goes into output, for both factors have passed silu. A norm without weight takes the scale of what it reads away.
std::vector<Edge> Mamba::edges() const {
  if (dt_norm) return dt_norm->weight && dt_norm->suffix == ".weight" ? std::vector<Edge>{inner_norm_edge(*dt_norm, dt)} : std::vector<Edge>{};
  Edge edge;
  edge.producer = select.path;
  edge.rows = select.parts[Select::dts];
  edge.consumers = {dt.path};
  edge.channels = edge.head_dim = dt.in;
  return {edge};
}

}  // namespace lquant::model
