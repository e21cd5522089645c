#include "model/ops/experts.h"

#include <mlx/mlx.h>

#include "kernels/elementwise.h"
#include "model/norm.h"
#include "model/ops/gated_mlp.h"

namespace lquant::model {
namespace {

/// Which experts each token goes to.
struct Routed {
  mx::array rows;                   ///< [T·k, H]
  std::optional<mx::array> source;  ///< [T, H]: what they are copies of
  mx::array weights;                ///< [T, k]
  kernels::Routing routing;
  kernels::Routing seen;                             ///< the same without rows of experts that have no weights
  std::optional<mx::array> identity = std::nullopt;  ///< [T, 1]: the weights of experts that give what they read
};

mx::array by_token(const mx::array& x) { return mx::reshape(x, {-1, x.shape(-1)}); }

/// `h` is what the experts read, `of_router` what the router does.
Routed route(const Scope& scope, const Experts& op, const mx::array& h, const mx::array& of_router) {
  const auto& router = op.router;
  auto choice = choose(scope, router, by_token(of_router));
  auto routing = kernels::sort_by_expert(choice.experts, router.experts), seen = routing;
  std::optional<mx::array> identity;
  if (op.identities > 0) {
    const int with_weights = router.experts - op.identities, rows = choice.experts.shape(0) * router.top_k;
    seen.offsets = mx::slice(routing.offsets, {0}, {with_weights + 1});
    // The products' last expert gets their rows as well, which count 0.
    routing.offsets = mx::concatenate({mx::slice(routing.offsets, {0}, {with_weights}), mx::array({rows}, {1}, mx::int32)});
    const auto own = mx::less(choice.experts, mx::array(with_weights, mx::int32)), none = mx::array(0.0f, choice.weights.dtype());
    identity = mx::sum(mx::where(own, none, choice.weights), -1, /*keepdims=*/true);
    choice.weights = mx::where(own, choice.weights, none);
  }
  std::optional<mx::array> source = by_token(h);
  auto rows = kernels::gather_rows(*source, routing, router.top_k);
  if (op.weighs_inputs) {
    const auto own = mx::take(mx::flatten(choice.weights), routing.order);
    rows = mx::multiply(rows, mx::astype(mx::expand_dims(own, 1), rows.dtype()));
    choice.weights = mx::ones_like(choice.weights);
    source.reset();
  }
  return {std::move(rows), std::move(source), std::move(choice.weights), std::move(routing), std::move(seen), std::move(identity)};
}

mx::array product(const Scope& scope, const LinearSpec& linear, const mx::array& x, const kernels::Routing& routing) {
  const auto weight = scope.weight(linear);
  return kernels::grouped_linear(x, weight.weight, weight.bias, routing.offsets);
}

/// What down reads.
mx::array inner(const Scope& scope, const Experts& op, const Routed& routed) {
  const auto up = product(scope, op.up, routed.rows, routed.routing);
  if (!op.gate) return kernels::activate(up, op.activation);
  const auto gate = product(scope, *op.gate, routed.rows, routed.routing);
  if (op.situ) return kernels::situ_gated(gate, up, *op.situ);
  return op.clamp ? kernels::clamped_gated(gate, up, *op.clamp) : kernels::gated(gate, up, op.activation);
}

}  // namespace

std::vector<const LinearSpec*> Experts::inputs() const {
  if (!gate) return {&up};
  return {&*gate, &up};
}

void Experts::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&router.linear, op, first_stage});
  if (result_gate) all.readings.push_back({&*result_gate, op, first_stage});
  if (into) all.readings.push_back({&*into, op, first_stage++});
  for (const auto* linear : inputs()) all.readings.push_back({linear, op, first_stage});
  all.readings.push_back({&down, op, first_stage + 1});
  if (out_of) all.readings.push_back({&*out_of, op, first_stage + 2});
  for (const auto* norm : {&router_norm, &in_norm, &expert_norm, &out_norm})
    if (*norm) all.norms.push_back(&**norm);
  for (const auto* parameter : {&router.correction, &router.expert_factors})
    if (*parameter) all.parameters.push_back(&**parameter);
}

// The router may be replaced before the next stage: what it chooses now is told to the observer and not kept.
Flow Experts::start(const Scope& scope, const mx::array& normed, const mx::array& raw) const {
  Flow first{{normed}, {}};
  if (router_norm) first.inputs.push_back(model::normed(scope.tensors, *router_norm, raw));
  if (!scope.observed()) return first;
  scope.observe(router.linear, first.inputs.back());
  if (result_gate) scope.observe(*result_gate, normed);
  if (into) {
    scope.observe(*into, normed);
  } else {
    const auto routed = route(scope, *this, normed, first.inputs.back());
    scope.observe_experts(inputs(), routed.rows, routed.seen, router.top_k, routed.source);
  }
  return first;
}

/// From what experts read to what down reads.
Flow Experts::expand(const Scope& scope, const mx::array& input, const mx::array& of_router) const {
  const auto routed = route(scope, *this, input, of_router);
  Flow next{{inner(scope, *this, routed)}, {routed.routing.order, routed.routing.offsets, routed.weights, input}};
  if (routed.identity) next.kept.push_back(*routed.identity);
  if (result_gate) next.kept.push_back(result_factor(scope, *result_gate, 0, input));
  scope.observe_experts({&down}, next.inputs[0], routed.seen, router.top_k);
  return next;
}

mx::array Experts::sum(const Scope& scope, const Flow& at) const {
  const kernels::Routing routing{at.kept[0], at.kept[1]};
  auto rows = product(scope, down, at.inputs[0], routing);
  if (expert_norm) rows = normed(scope.tensors, *expert_norm, rows);
  auto all = kernels::combine_rows(rows, at.kept[2], routing, router.top_k);
  if (identities > 0) all = mx::add(all, mx::multiply(by_token(at.kept[3]), mx::astype(at.kept[4], all.dtype())));
  return mx::reshape(all, at.kept[3].shape());
}

Flow Experts::advance(const Scope& scope, int stage, const Flow& at) const {
  if (!into) return expand(scope, at.inputs[0], at.inputs.back());
  if (stage == 1) {
    const auto latent = kernels::linear(at.inputs[0], scope.weight(*into));
    Flow next{{in_norm ? normed(scope.tensors, *in_norm, latent) : latent}, {at.inputs.back()}};
    if (scope.observed()) {
      const auto routed = route(scope, *this, next.inputs[0], next.kept[0]);
      scope.observe_experts(inputs(), routed.rows, routed.seen, router.top_k, routed.source);
    }
    return next;
  }
  if (stage == 2) return expand(scope, at.inputs[0], at.kept[0]);
  auto all = sum(scope, at);
  Flow next{{out_norm ? normed(scope.tensors, *out_norm, all) : all}, {}};
  scope.observe(*out_of, next.inputs[0]);
  return next;
}

mx::array Experts::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  if (out_of) return kernels::linear(at.inputs[0], scope.weight(*out_of), residual);
  auto out = sum(scope, at);
  if (result_gate) out = mx::multiply(out, at.kept.back());
  return residual ? kernels::add(*residual, out) : out;
}

std::vector<std::string> Experts::readers() const {
  if (identities > 0) return {};  // what the norm makes is part of the result
  std::vector<std::string> all;
  if (!router_norm) all.push_back(router.linear.path);
  if (result_gate) all.push_back(result_gate->path);
  if (into) {
    all.push_back(into->path);
    return all;
  }
  for (const auto* linear : inputs()) all.push_back(linear->path);
  return all;
}

/// Limits and an added 1 let no scale through; of the activations of a plain MLP relu² alone does.
std::vector<Edge> Experts::edges() const {
  std::vector<Edge> all;
  const auto add_norm = [&](const NormSpec& norm, std::vector<std::string> consumers) {
    Edge edge;
    edge.producer = norm.path;
    edge.norm = norm;
    edge.consumers = std::move(consumers);
    edge.channels = edge.head_dim = norm.size;
    all.push_back(std::move(edge));
  };
  if (in_norm) {
    std::vector<std::string> readers;
    for (const auto* linear : inputs()) readers.push_back(linear->path);
    add_norm(*in_norm, std::move(readers));
  }
  if (out_norm) add_norm(*out_norm, {out_of->path});
  if (clamp || (situ && situ->linear > 0) || (!gate && activation != kernels::Activation::relu2)) return all;
  auto edge = gated_edge(up, Part::piece(Role::expert_up, 0, up.out), down);
  if (!gate) edge.degree = 2;
  all.push_back(std::move(edge));
  return all;
}

}  // namespace lquant::model
