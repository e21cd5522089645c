#include "model/ops/experts.h"

#include <mlx/mlx.h>

#include "kernels/elementwise.h"
#include "model/norm.h"
#include "model/ops/gated_mlp.h"

namespace lquant::model {
namespace {

/// Which experts each token goes to.
struct Routed {
  mx::array rows;     ///< [T·k, H]
  mx::array weights;  ///< [T, k]
  kernels::Routing routing;
};

/// `h` is what the experts read, `of_router` what the router does.
Routed route(const Scope& scope, const Experts& op, const mx::array& h, const mx::array& of_router) {
  const auto by_token = [](const mx::array& x) { return mx::reshape(x, {-1, x.shape(-1)}); };
  auto scores = kernels::linear(by_token(of_router), scope.weight(op.router));
  if (!op.over_chosen) scores = mx::softmax(scores, -1, /*precise=*/true);
  const int first = op.experts - op.top_k;
  const auto ranked = mx::argpartition(mx::stop_gradient(scores), first, -1);
  const auto chosen = mx::slice(ranked, {0, first}, {ranked.shape(0), op.experts});
  auto weights = mx::take_along_axis(scores, chosen, -1);
  if (op.over_chosen) weights = mx::softmax(weights, -1);
  if (op.normalize) weights = mx::divide(weights, mx::sum(weights, -1, /*keepdims=*/true));
  if (op.expert_factors) weights = mx::multiply(weights, mx::take(scope.tensor(op.expert_factors->path), chosen, 0));
  auto routing = kernels::sort_by_expert(mx::astype(chosen, mx::int32), op.experts);
  auto rows = kernels::gather_rows(by_token(h), routing, op.top_k);
  return {std::move(rows), std::move(weights), std::move(routing)};
}

mx::array product(const Scope& scope, const LinearSpec& linear, const mx::array& x, const kernels::Routing& routing) {
  const auto weight = scope.weight(linear);
  return kernels::grouped_linear(x, weight.weight, weight.bias, routing.offsets);
}

}  // namespace

void Experts::contents(int op, int first_stage, Contents& all) const {
  for (const auto* linear : {&router, &gate, &up}) all.readings.push_back({linear, op, first_stage});
  all.readings.push_back({&down, op, first_stage + 1});
  if (router_norm) all.norms.push_back(&*router_norm);
  if (expert_factors) all.parameters.push_back(&*expert_factors);
}

// The router may be replaced before the next stage: what it chooses now is told to the observer and not kept.
Flow Experts::start(const Scope& scope, const mx::array& normed, const mx::array& raw) const {
  Flow first{{normed}, {}};
  if (router_norm) first.inputs.push_back(model::normed(scope.tensors, *router_norm, raw));
  if (scope.observed()) {
    scope.observe(router, first.inputs.back());
    const auto routed = route(scope, *this, normed, first.inputs.back());
    scope.observe_experts({&gate, &up}, routed.rows, routed.routing, top_k);
  }
  return first;
}

Flow Experts::advance(const Scope& scope, int, const Flow& at) const {
  auto routed = route(scope, *this, at.inputs[0], at.inputs.back());
  const auto gates = product(scope, gate, routed.rows, routed.routing);
  Flow next{{kernels::gated(gates, product(scope, up, routed.rows, routed.routing), activation)},
            {routed.routing.order, routed.routing.offsets, routed.weights, at.inputs[0]}};
  scope.observe_experts({&down}, next.inputs[0], routed.routing, top_k);
  return next;
}

mx::array Experts::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  const kernels::Routing routing{at.kept[0], at.kept[1]};
  const auto sum = kernels::combine_rows(product(scope, down, at.inputs[0], routing), at.kept[2], routing, top_k);
  const auto out = mx::reshape(sum, at.kept[3].shape());
  return residual ? kernels::add(*residual, out) : out;
}

std::vector<std::string> Experts::readers() const {
  if (router_norm) return {gate.path, up.path};
  return {router.path, gate.path, up.path};
}

std::vector<Edge> Experts::edges() const { return {gated_edge(up, Part::piece(Role::expert_up, 0, up.out), down)}; }

}  // namespace lquant::model
