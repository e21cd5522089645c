#include "model/ops/plain_mlp.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/activation.h"
#include "kernels/elementwise.h"

namespace lquant::model {
namespace {

using kernels::Activation;

}  // namespace

void PlainMlp::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&up, op, first_stage});
  all.readings.push_back({&down, op, first_stage + 1});
}

Flow PlainMlp::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(up, normed);
  return {{normed}, {}};
}

Flow PlainMlp::advance(const Scope& scope, int, const Flow& at) const {
  Flow next{{kernels::activate(kernels::linear(at.inputs[0], scope.weight(up)), activation)}, {}};
  scope.observe(down, next.inputs[0]);
  return next;
}

mx::array PlainMlp::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(down), residual);
}

/// relu(s·x) = s·relu(x) for s > 0, and relu² is of degree 2; the others bend, and no scale passes them.
std::vector<Edge> PlainMlp::edges() const {
  if (activation != Activation::relu && activation != Activation::relu2) return {};
  Edge edge;
  edge.producer = up.path;
  edge.rows = Part::piece(Role::up, 0, up.out);
  edge.consumers = {down.path};
  edge.channels = edge.head_dim = down.in;
  edge.degree = activation == Activation::relu2 ? 2 : 1;
  return {edge};
}

}  // namespace lquant::model
