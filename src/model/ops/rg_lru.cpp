#include "model/ops/rg_lru.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/ssm.h"
#include "model/ops/taps.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

mx::array f32(const Scope& scope, const ParameterSpec& parameter) { return mx::astype(scope.tensor(parameter.path), mx::float32); }

/// σ(x W + b), head by head; x [B, T, width] f32.
mx::array gate(const Scope& scope, int heads, const mx::array& x, const ParameterSpec& weight, const ParameterSpec& bias) {
  const auto by_head = mx::swapaxes(mx::unflatten(x, -1, {heads, -1}), 1, 2);
  const auto product = mx::swapaxes(mx::matmul(by_head, f32(scope, weight)), 1, 2);
  return mx::sigmoid(mx::flatten(mx::add(product, f32(scope, bias)), -2, -1));
}

}  // namespace

void RgLru::contents(int op, int first_stage, Contents& all) const {
  for (const auto* linear : {&y, &x}) all.readings.push_back({linear, op, first_stage});
  all.readings.push_back({&output, op, first_stage + 1});
  for (const auto* parameter : {&taps, &taps_bias, &input_gate, &input_gate_bias, &decay_gate, &decay_gate_bias, &rate})
    all.parameters.push_back(parameter);
}

Flow RgLru::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  for (const auto* linear : {&y, &x}) scope.observe(*linear, normed);
  return {{normed}, {}};
}

Flow RgLru::advance(const Scope& scope, int, const Flow& at) const {
  const auto& context = scope.context;
  if (context.branches) throw std::invalid_argument("[model] a recurrent state does not go on from a beginning computed once; give no branches");
  const auto both = kernels::linears(at.inputs[0], {scope.weight(y), scope.weight(x)});
  auto in = convolved(scope, taps, both[1]);
  in = mx::add(in, mx::astype(scope.tensor(taps_bias.path), in.dtype()));

  const auto wide = mx::astype(in, mx::float32), one = mx::array(1.0f);
  const auto softplus = mx::logaddexp(f32(scope, rate), mx::array(0.0f));
  const auto logs = mx::multiply(mx::multiply(mx::array(-8.0f), gate(scope, heads, wide, decay_gate, decay_gate_bias)), softplus);
  const auto places = positions(context, wide.shape(0), wide.shape(1));
  const auto begins = mx::expand_dims(mx::equal(places, mx::array(0, mx::int32)), -1);
  // 1 − a² without its rounding near a = 1. What is cut out at a text's first token is cut out before the root too: its slope there may have no
  // bound.
  const auto rest = mx::where(begins, one, mx::negative(mx::expm1(mx::multiply(mx::array(2.0f), logs))));
  const auto terms = mx::multiply(mx::multiply(mx::sqrt(rest), gate(scope, heads, wide, input_gate, input_gate_bias)), wide);
  const auto decays = mx::where(begins, mx::array(0.0f), mx::exp(logs));
  const auto before = context.cache ? context.cache->kept(scope.block, rate.path) : std::nullopt;
  const auto h = kernels::linear_scan(decays, terms, before);
  if (context.cache) context.cache->keep(scope.block, rate.path, mx::take(h, mx::array(h.shape(1) - 1), 1));

  Flow next{{kernels::gated(both[0], mx::astype(h, in.dtype()), kernels::Activation::gelu_tanh)}, {}};
  scope.observe(output, next.inputs[0]);
  return next;
}

mx::array RgLru::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

}  // namespace lquant::model
