#include "model/ops/altup.h"

#include <mlx/mlx.h>

#include "kernels/activation.h"
#include "kernels/elementwise.h"
#include "model/norm.h"
#include "model/ops/parts.h"

namespace lquant::model {
namespace {

/// sqrt(mean(x²)) of each token, [B, T, 1].
mx::array magnitude(const mx::array& x) { return mx::sqrt(mx::mean(mx::square(x), -1, /*keepdims=*/true)); }

/// y as large as `target`. mlx_lm guards by the dtype's least number, which is below every magnitude.
mx::array resized(const mx::array& y, const mx::array& target) { return mx::multiply(y, mx::divide(target, magnitude(y))); }

/// What stands in the state from this column on; none when that is its end.
std::vector<mx::array> from_column(const Scope& scope, int first) {
  const int width = scope.state->shape(-1);
  return first < width ? std::vector{scope.columns({first, width - first})} : std::vector<mx::array>{};
}

}  // namespace

mx::array AltUp::router_input(const Scope& scope, const mx::array& x) const {
  const auto h = normed(scope.tensors, router_norm, x);
  return mx::multiply(h, mx::array(1.0f / static_cast<float>(hidden), h.dtype()));
}

mx::array AltUp::coefficients(const Scope& scope, const mx::array& router_input) const {
  const auto modalities = mx::tanh(f32(kernels::linear(router_input, scope.weight(router))));
  auto w = f32(scope.tensor(weights.path));
  if (clip > 0) w = mx::clip(w, mx::array(-clip), mx::array(clip));
  return mx::matmul(modalities, mx::transpose(w));
}

void AltUpPredict::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&altup.router, op, first_stage});
  all.norms.push_back(&altup.router_norm);
  all.parameters.push_back(&altup.weights);
}

Flow AltUpPredict::start(const Scope& scope, const mx::array&, const mx::array&) const {
  Flow next{{altup.router_input(scope, scope.columns(altup.stream(altup.active)))}, {}};
  scope.observe(altup.router, next.inputs[0]);
  return next;
}

mx::array AltUpPredict::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const int n = altup.streams;
  const auto all = altup.coefficients(scope, at.inputs[0]);
  std::vector<mx::array> parts;
  for (int i = 0; i < n; ++i) {
    const auto own = f32(scope.columns(altup.stream(i)));
    auto sum = own;
    for (int j = 0; j < n; ++j) {
      const auto c = mx::slice(all, {0, 0, i * n + j}, {all.shape(0), all.shape(1), i * n + j + 1});
      sum = mx::add(sum, mx::multiply(f32(scope.columns(altup.stream(j))), c));
    }
    parts.push_back(mx::astype(sum, scope.dtype));
  }
  parts.insert(parts.begin(), parts[altup.active]);
  for (auto& rest : from_column(scope, n * altup.hidden)) parts.push_back(std::move(rest));
  return mx::concatenate(parts, -1);
}

void AltUpCorrect::contents(int, int, Contents& all) const { all.parameters.push_back(&altup.weights); }

Flow AltUpCorrect::start(const Scope& scope, const mx::array&, const mx::array&) const {
  Flow next{{altup.router_input(scope, scope.columns({0, altup.hidden}))}, {}};
  scope.observe(altup.router, next.inputs[0]);
  return next;
}

mx::array AltUpCorrect::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto coefficients = mx::add(altup.coefficients(scope, at.inputs[0]), mx::array(1.0f));
  const auto prediction = [&](int i) { return scope.columns(altup.stream(i + 1)); };
  const auto innovation = f32(mx::subtract(scope.columns({0, altup.hidden}), prediction(altup.active)));
  std::vector<mx::array> parts;
  for (int i = 0; i < altup.streams; ++i) {
    const auto c = mx::slice(coefficients, {0, 0, i}, {coefficients.shape(0), coefficients.shape(1), i + 1});
    parts.push_back(mx::astype(mx::add(mx::multiply(innovation, c), f32(prediction(i))), scope.dtype));
  }
  for (auto& rest : from_column(scope, (altup.streams + 1) * altup.hidden)) parts.push_back(std::move(rest));
  return mx::concatenate(parts, -1);
}

void AltUpInputs::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&gate, op, first_stage});
  all.readings.push_back({&projection, op, first_stage + 1});
  all.norms.push_back(&norm);
  all.parameters.push_back(&scale);
}

Flow AltUpInputs::start(const Scope& scope, const mx::array&, const mx::array&) const {
  auto x = mx::contiguous(scope.columns(active));
  if (scales) x = mx::multiply(x, mx::astype(scope.tensor(scale.path), x.dtype()));
  scope.observe(gate, x);
  return {{x}, {}};
}

Flow AltUpInputs::advance(const Scope& scope, int, const Flow& at) const {
  Flow next{{kernels::gated(kernels::linear(at.inputs[0], scope.weight(gate)), mx::contiguous(scope.columns(input)), kernels::Activation::gelu_tanh)},
            {}};
  scope.observe(projection, next.inputs[0]);
  return next;
}

mx::array AltUpInputs::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  const auto y = normed(scope.tensors, norm, kernels::linear(at.inputs[0], scope.weight(projection)));
  const auto all = mx::concatenate(std::vector<mx::array>(streams - 1, y), -1);
  return residual ? mx::add(*residual, all) : all;
}

void Laurel::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&left, op, first_stage});
  all.readings.push_back({&right, op, first_stage + 1});
  all.norms.push_back(&norm);
}

Flow Laurel::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(left, normed);
  return {{normed}, {}};
}

Flow Laurel::advance(const Scope& scope, int, const Flow& at) const {
  Flow next{{kernels::linear(at.inputs[0], scope.weight(left))}, {at.inputs[0]}};
  scope.observe(right, next.inputs[0]);
  return next;
}

mx::array Laurel::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  const auto y = add_norm(scope.tensors, norm, at.kept[0], kernels::linear(at.inputs[0], scope.weight(right)));
  return residual ? kernels::add(*residual, y) : y;
}

std::vector<Edge> Laurel::edges() const {
  Edge edge;
  edge.producer = left.path;
  edge.rows = Part::piece(Role::other, 0, left.out);
  edge.consumers = {right.path};
  edge.channels = edge.head_dim = left.out;
  return {edge};
}

void AltUpSplit::contents(int op, int first_stage, Contents& all) const {
  for (const auto& linear : projections) all.readings.push_back({&linear, op, first_stage});
}

Flow AltUpSplit::start(const Scope& scope, const mx::array&, const mx::array& raw) const {
  for (const auto& linear : projections) scope.observe(linear, raw);
  return {{raw}, {}};
}

mx::array AltUpSplit::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto& x = at.inputs[0];
  std::vector<mx::array> streams{x};
  for (const auto& linear : projections) streams.push_back(resized(kernels::linear(x, scope.weight(linear)), magnitude(x)));
  return mx::concatenate(streams, -1);
}

void AltUpMerge::contents(int op, int first_stage, Contents& all) const {
  for (const auto& linear : projections) all.readings.push_back({&linear, op, first_stage});
}

Flow AltUpMerge::start(const Scope& scope, const mx::array&, const mx::array&) const {
  Flow next;
  for (int i = 0; i <= static_cast<int>(projections.size()); ++i) {
    next.inputs.push_back(mx::contiguous(scope.columns({i * hidden, hidden})));
    if (i > 0) scope.observe(projections[i - 1], next.inputs.back());
  }
  return next;
}

mx::array AltUpMerge::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>&) const {
  const auto& first = at.inputs[0];
  const auto target = magnitude(first);
  auto sum = first;
  for (std::size_t i = 0; i < projections.size(); ++i)
    sum = mx::add(sum, resized(kernels::linear(at.inputs[i + 1], scope.weight(projections[i])), target));
  return mx::multiply(sum, mx::array(1.0f / static_cast<float>(at.inputs.size()), sum.dtype()));
}

}  // namespace lquant::model
