#include "model/ops/short_conv.h"

#include <mlx/mlx.h>

#include "kernels/linear.h"
#include "model/ops/parts.h"
#include "model/ops/taps.h"

namespace lquant::model {

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
  const auto all = products_of_parts(scope, input, at.inputs[0]);
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
