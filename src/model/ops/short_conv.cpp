#include "model/ops/short_conv.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/linear.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

/// Σ over the taps in f32, rounded once. x [B, T, channels], taps [channels, taps, 1].
mx::array convolved(const Scope& scope, const ParameterSpec& spec, const mx::array& x) {
  const int channels = spec.shape[0], count = spec.shape[1];
  const auto taps = mx::astype(mx::reshape(scope.tensor(spec.path), {channels, count}), mx::float32);
  const auto inputs = preceding(scope.context, scope.block, spec.path, x, count - 1);
  std::optional<mx::array> sum;
  for (int back = count - 1; back >= 0; --back) {
    const auto tap = mx::reshape(mx::slice(taps, {0, count - 1 - back}, {channels, count - back}), {channels});
    const auto term = mx::multiply(mx::astype(inputs[back], mx::float32), tap);
    sum = sum ? mx::add(*sum, term) : term;
  }
  return mx::astype(*sum, x.dtype());
}

}  // namespace

void ShortConv::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&input, op, first_stage});
  all.readings.push_back({&output, op, first_stage + 1});
  all.parameters.push_back(&taps);
  if (bias) all.parameters.push_back(&*bias);
}

Flow ShortConv::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(input, normed);
  return {{normed}, {}};
}

Flow ShortConv::advance(const Scope& scope, int, const Flow& at) const {
  if (scope.context.cache && scope.context.segments) throw std::invalid_argument("[model] segments and a cache exclude each other");
  std::vector<kernels::LinearWeight> weights;
  for (const auto& part : input.parts) weights.push_back(scope.weight(input, part));
  const auto all = kernels::linears(at.inputs[0], weights);
  auto y = convolved(scope, taps, mx::multiply(all[0], all[2]));
  if (bias) y = mx::add(y, mx::astype(scope.tensor(bias->path), y.dtype()));
  Flow next{{mx::multiply(all[1], y)}, {}};
  scope.observe(output, next.inputs[0]);
  return next;
}

mx::array ShortConv::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

/// The result is linear in C whatever the biases are; in B and x it is where conv has none, and one of the three suffices.
std::vector<Edge> ShortConv::edges() const {
  Edge edge;
  edge.producer = input.path;
  edge.rows = input.parts[1];
  edge.consumers = {output.path};
  edge.channels = edge.head_dim = output.in;
  return {edge};
}

}  // namespace lquant::model
