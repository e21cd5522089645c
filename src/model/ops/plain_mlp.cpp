#include "model/ops/plain_mlp.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise.h"

namespace lquant::model {
namespace {

using kernels::Activation;

mx::array activated(const mx::array& x, Activation activation) { return kernels::gated(x, mx::ones_like(x), activation); }

/// In the dtype of x, every step rounded, as mlx_lm has it.
mx::array activated(const Scope& scope, const mx::array& x, const Xielu& xielu) {
  const auto number = [&](const ParameterSpec& spec) { return mx::astype(scope.tensor(spec.path), x.dtype()); };
  const auto softplus = [](const mx::array& a) { return mx::logaddexp(a, mx::array(0.0f, a.dtype())); };
  const auto beta = number(xielu.beta);
  const auto above = softplus(number(xielu.alpha_p)), below = mx::add(beta, softplus(number(xielu.alpha_n)));
  const auto linear = mx::multiply(beta, x);
  const auto bend = mx::subtract(mx::expm1(mx::minimum(x, number(xielu.eps))), x);
  return mx::where(mx::greater(x, mx::array(0.0f, x.dtype())), mx::add(mx::multiply(above, mx::square(x)), linear), mx::add(mx::multiply(bend, below), linear));
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
  Flow next{{xielu ? activated(scope, y, *xielu) : activated(y, activation)}, {}};
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
