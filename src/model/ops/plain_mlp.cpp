#include "model/ops/plain_mlp.h"

#include "kernels/activation.h"
#include "kernels/linear.h"

namespace lquant::model {
namespace {

using kernels::Activation;

mx::array activated(const Scope& scope, const mx::array& x, const Xielu& xielu) {
  const auto number = [&](const ParameterSpec& spec) { return scope.tensor(spec.path); };
  return kernels::xielu(x, {number(xielu.alpha_p), number(xielu.alpha_n), number(xielu.beta), number(xielu.eps)});
}

}  // namespace

void PlainMlp::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&up, op, first_stage});
  all.readings.push_back({&down, op, first_stage + 1});
  if (!xielu) return;
  for (const auto* number : {&xielu->alpha_p, &xielu->alpha_n, &xielu->beta, &xielu->eps}) all.parameters.push_back(number);
}

Flow PlainMlp::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(up, normed);
  return {{normed}, {}};
}

Flow PlainMlp::advance(const Scope& scope, int, const Flow& at) const {
  const auto y = kernels::linear(at.inputs[0], scope.weight(up));
  Flow next{{xielu ? activated(scope, y, *xielu) : kernels::activate(y, activation)}, {}};
  scope.observe(down, next.inputs[0]);
  return next;
}

mx::array PlainMlp::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(down), residual);
}

/// relu(s·x) = s·relu(x) for s > 0, and relu² is of degree 2; the others bend, and no scale passes them.
std::vector<Edge> PlainMlp::edges() const {
  if (xielu || (activation != Activation::relu && activation != Activation::relu2)) return {};
  Edge edge;
  edge.producer = up.path;
  edge.rows = Part::piece(Role::up, 0, up.out);
  edge.consumers = {down.path};
  edge.channels = edge.head_dim = down.in;
  edge.degree = activation == Activation::relu2 ? 2 : 1;
  return {edge};
}

}  // namespace lquant::model
