#include "model/ops/hyper_connection.h"

#include <mlx/mlx.h>

#include "kernels/linear.h"
#include "kernels/norm.h"
#include "model/ops/exact.h"
#include "model/ops/parts.h"

namespace lquant::model {
namespace {

/// [B, T, n, hidden] of the streams that begin at this column, in f32.
mx::array streams_of(const mx::array& state, const HyperColumns& columns, int first) {
  return mx::unflatten(f32(between(state, first, first + columns.weights())), -1, {columns.streams, columns.hidden});
}

/// Σ weights_i · stream_i of a state between sub-layers.
mx::array weighed_sum(const mx::array& state, const HyperColumns& columns) {
  const auto weights = out_of_columns(between(state, columns.weights(), columns.others()), kNumberColumns);
  const auto sum = mx::matmul(mx::expand_dims(weights, -2), streams_of(state, columns, 0));
  return mx::astype(mx::squeeze(sum, -2), state.dtype());
}

mx::array divided_by_sums(const mx::array& x, int axis, float eps) {
  return mx::divide(x, mx::add(mx::sum(x, axis, /*keepdims=*/true), mx::array(eps)));
}

/// The weights of the next sum, of what is added, and the matrix [from, to] flat: f32 [B, T, n], [B, T, n], [B, T, n²].
std::vector<mx::array> mixes(const Scope& scope, const HyperConnection& own, const mx::array& state) {
  const int n = own.columns.streams;
  const auto flat = kernels::rms_norm(f32(between(state, 0, own.columns.weights())), std::nullopt, own.norm_eps);
  const auto factors = mx::split(f32(scope.tensor(own.scale.path)), 3, 0);
  const auto factor = mx::concatenate({mx::repeat(factors[0], n), mx::repeat(factors[1], n), mx::repeat(factors[2], n * n)});
  const auto made = kernels::linear(flat, {f32(scope.tensor(own.fn.path))});
  const auto all = mx::split(mx::add(mx::multiply(made, factor), f32(scope.tensor(own.base.path))), mx::Shape{n, 2 * n}, -1);
  const mx::array eps(own.eps);
  auto matrix = mx::add(mx::softmax(mx::unflatten(all[2], -1, {n, n}), -1), eps);
  matrix = divided_by_sums(matrix, -2, own.eps);
  for (int round = 1; round < own.rounds; ++round) matrix = divided_by_sums(divided_by_sums(matrix, -1, own.eps), -2, own.eps);
  return {mx::add(mx::sigmoid(all[0]), eps), mx::multiply(mx::array(2.0f), mx::sigmoid(all[1])), mx::flatten(matrix, -2, -1)};
}

}  // namespace

int HyperColumns::others() const { return weights() + kNumberColumns * streams; }

mx::array HyperSplit::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto& x = at.inputs[0];
  std::vector<mx::array> parts(columns.streams, x);
  auto shape = x.shape();
  shape.back() = columns.streams;
  const auto first = mx::astype(mx::equal(mx::arange(columns.streams, mx::int32), mx::array(0, mx::int32)), mx::float32);
  parts.push_back(in_columns(mx::broadcast_to(first, shape), kNumberColumns, scope.dtype));
  shape.back() = room;
  if (room > 0) parts.push_back(mx::zeros(shape, scope.dtype));
  return mx::concatenate(parts, -1);
}

void HyperEnter::contents(int, int, Contents& all) const {
  for (const auto* parameter : {&connection.fn, &connection.base, &connection.scale}) all.parameters.push_back(parameter);
}

mx::array HyperEnter::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto& state = at.inputs[0];
  const auto& columns = connection.columns;
  const auto made = mixes(scope, connection, state);
  std::vector<mx::array> parts{weighed_sum(state, columns), between(state, 0, columns.weights()), in_columns(made[0], kNumberColumns, scope.dtype)};
  if (state.shape(-1) > columns.others()) parts.push_back(between(state, columns.others()));
  parts.push_back(in_columns(mx::concatenate({made[1], made[2]}, -1), kNumberColumns, scope.dtype));
  return mx::concatenate(parts, -1);
}

mx::array HyperLeave::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto& state = at.inputs[0];
  const int n = columns.streams, H = columns.hidden, kept = state.shape(-1) - kNumberColumns * (n + n * n);
  const auto mixing = mx::split(out_of_columns(between(state, kept), kNumberColumns), mx::Shape{n}, -1);
  const auto mixed = mx::matmul(mx::swapaxes(mx::unflatten(mixing[1], -1, {n, n}), -1, -2), streams_of(state, columns, H));
  const auto added = mx::multiply(mx::expand_dims(mixing[0], -1), mx::expand_dims(f32(between(state, 0, H)), -2));
  const auto streams = mx::astype(mx::flatten(mx::add(added, mixed), -2, -1), scope.dtype);
  return mx::concatenate({streams, between(state, H + columns.weights(), kept)}, -1);
}

mx::array HyperMerge::finish(const Scope&, const Flow& at, const std::optional<mx::array>&) const { return weighed_sum(at.inputs[0], columns); }

}  // namespace lquant::model
