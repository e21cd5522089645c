#include "model/ops/residual_mix.h"

#include <mlx/mlx.h>

#include "kernels/elementwise.h"
#include "model/ops/parts.h"

namespace lquant::model {
namespace {

/// `first`, then the state's columns from this one on, if any.
mx::array followed(std::vector<mx::array> first, const mx::array& state, int from) {
  if (from < state.shape(-1)) first.push_back(between(state, from));
  return mx::concatenate(first, -1);
}

}  // namespace

void ResidualMix::contents(Contents& all) const {
  for (const auto* parameter : {&norm, &projection}) all.parameters.push_back(parameter);
}

mx::array ResidualMix::of(const Scope& scope, const mx::array& state, int first) const {
  const int count = (state.shape(-1) - first) / hidden;
  if (count == 1) return between(state, first);
  const auto all = mx::unflatten(f32(between(state, first)), -1, {count, hidden});
  const auto weight = mx::multiply(f32(scope.tensor(norm.path)), mx::flatten(f32(scope.tensor(projection.path))));
  const auto inverse = mx::rsqrt(mx::add(mx::mean(mx::square(all), -1), mx::array(eps)));
  const auto shares = mx::softmax(mx::multiply(mx::squeeze(mx::matmul(all, mx::expand_dims(weight, 1)), -1), inverse), -1);
  return mx::astype(mx::squeeze(mx::matmul(mx::expand_dims(shares, -2), all), -2), state.dtype());
}

mx::array ResidualEnter::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto& state = at.inputs[0];
  const auto mixed = mix.of(scope, state, 0);
  if (!starts) return mx::concatenate({mixed, state}, -1);
  const auto residual = between(state, 0, mix.hidden);
  if (state.shape(-1) == mix.hidden) return mx::concatenate({mixed, residual}, -1);
  return mx::concatenate({mixed, between(state, mix.hidden), residual}, -1);
}

mx::array ResidualTurn::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto& state = at.inputs[0];
  const int H = mix.hidden;
  const auto made = between(state, 0, H);
  const auto next = followed({starts ? made : kernels::add(between(state, H, 2 * H), made)}, state, starts ? H : 2 * H);
  return mx::concatenate({mix.of(scope, next, 0), next}, -1);
}

mx::array ResidualLeave::finish(const Scope&, const Flow& at, const std::optional<mx::array>&) const {
  const auto& state = at.inputs[0];
  return followed({kernels::add(between(state, hidden, 2 * hidden), between(state, 0, hidden))}, state, 2 * hidden);
}

mx::array ResidualMerge::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const { return mix.of(scope, at.inputs[0], 0); }

}  // namespace lquant::model
