// Mixes and the numbers of the recurrence are rounded where mlx_lm rounds them; the recurrence itself is f32. The norm in front of the mixes has no
// edge: what AWQ weighs a scale by is one input, and here each linear has its own.
#include "model/ops/rwkv.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/wkv.h"
#include "model/ops/parts.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

/// x + (the token before − x) ⊙ mix.
mx::array mixed(const Scope& scope, const std::vector<mx::array>& both, const ParameterSpec& mix) {
  const auto weight = mx::astype(mx::flatten(scope.tensor(mix.path)), both[0].dtype());
  return mx::add(both[0], mx::multiply(mx::subtract(both[1], both[0]), weight));
}

/// x / max(‖x‖, 1e-7) over each head.
mx::array unit(const mx::array& x) {
  const auto length = mx::sqrt(mx::maximum(mx::sum(mx::square(x), -1, /*keepdims=*/true), mx::array(1e-14f)));
  return mx::divide(x, length);
}

}  // namespace

std::vector<std::pair<const LowRank*, int>> RwkvTimeMix::low_ranks() const {
  std::vector<std::pair<const LowRank*, int>> all = {{&decay, of_w}, {&rate, of_a}, {&gate, of_g}};
  if (value) all.emplace_back(&*value, of_v);
  return all;
}

void RwkvTimeMix::contents(int op, int first_stage, Contents& all) const {
  for (int mix = 0; mix < 6; ++mix) {
    for (const auto& [linear, own] : {std::pair{&r, of_r}, {&k, of_k}, {&v, of_v}})
      if (own == mix) all.readings.push_back({linear, op, first_stage, mix});
    for (const auto& [ranks, own] : low_ranks())
      if (own == mix) all.readings.push_back({&ranks->first, op, first_stage, mix});
  }
  int input = 0;
  for (const auto& [ranks, own] : low_ranks()) all.readings.push_back({&ranks->second, op, first_stage + 1, input++});
  all.readings.push_back({&output, op, first_stage + 2});
  for (const auto& mix : mixes) all.parameters.push_back(&mix);
  for (const auto* parameter : {&k_k, &k_a, &r_k, &norm_weight, &norm_bias}) all.parameters.push_back(parameter);
}

Flow RwkvTimeMix::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  if (scope.context.branches)
    throw std::invalid_argument("[model] a recurrent state does not go on from a beginning computed once; give no branches");
  const auto both = preceding(scope.context, scope.block, mixes[0].path, normed, 1);
  Flow first;
  for (const auto& mix : mixes) first.inputs.push_back(mixed(scope, both, mix));
  scope.observe(r, first.inputs[of_r]);
  scope.observe(k, first.inputs[of_k]);
  scope.observe(v, first.inputs[of_v]);
  for (const auto& [ranks, mix] : low_ranks()) scope.observe(ranks->first, first.inputs[mix]);
  return first;
}

Flow RwkvTimeMix::advance(const Scope& scope, int stage, const Flow& at) const {
  const auto product = [&](const LinearSpec& linear, const mx::array& x) { return kernels::linear(x, scope.weight(linear)); };
  if (stage == 1) {
    Flow next{{}, {product(v, at.inputs[of_v]), product(r, at.inputs[of_r]), product(k, at.inputs[of_k])}};
    for (const auto& [ranks, mix] : low_ranks()) {
      auto y = product(ranks->first, at.inputs[mix]);
      if (mix == of_w) y = mx::tanh(y);
      if (mix == of_g) y = kernels::activate(y, kernels::Activation::sigmoid);
      next.inputs.push_back(y);
      scope.observe(ranks->second, y);
    }
    return next;
  }
  const auto &v0 = at.kept[0], &r0 = at.kept[1], &k0 = at.kept[2];
  const auto dtype = v0.dtype();
  auto values = v0;
  if (value) {
    const auto share = kernels::activate(product(value->second, at.inputs[3]), kernels::Activation::sigmoid);
    values = mx::add(v0, mx::multiply(mx::subtract(scope.columns({*first_values, v0.shape(-1)}), v0), share));
  }
  const auto split = [&](const mx::array& x) { return mx::unflatten(f32(x), -1, {heads, head_dim}); };
  const auto by_head = [&](const ParameterSpec& parameter) { return f32(scope.tensor(parameter.path)); };
  const auto rates = split(kernels::activate(product(rate.second, at.inputs[1]), kernels::Activation::sigmoid));
  // mlx_lm rounds the decay; its exponent is what a state outlives by, and is kept whole here.
  const auto decays = mx::exp(mx::multiply(mx::array(-0.606531f), mx::sigmoid(split(product(decay.second, at.inputs[0])))));
  const auto gates = product(gate.second, at.inputs[2]);

  const auto receptance = split(r0), raw_keys = split(k0), wide = split(values), one = mx::array(1.0f);
  const auto directions = unit(mx::multiply(raw_keys, by_head(k_k)));
  const auto keys = mx::multiply(raw_keys, mx::add(one, mx::multiply(mx::subtract(rates, one), by_head(k_a))));
  kernels::Wkv in{receptance, decays, keys, wide, mx::negative(directions), mx::multiply(directions, rates)};
  const auto& context = scope.context;
  in.segments = context.segments;
  if (context.cache) in.state = context.cache->kept(scope.block, k_k.path);
  const auto [y, state] = kernels::wkv(in);
  if (context.cache) context.cache->keep(scope.block, k_k.path, state);

  constexpr float kEps = 64e-5f;  // of the norm by head, in every model
  const auto normed = mx::add(mx::multiply(by_head(norm_weight), kernels::layer_norm(y, std::nullopt, std::nullopt, kEps)), by_head(norm_bias));
  const auto bonus = mx::sum(mx::multiply(mx::multiply(receptance, keys), by_head(r_k)), -1, /*keepdims=*/true);
  const auto out = mx::astype(mx::flatten(mx::add(normed, mx::multiply(bonus, wide)), -2, -1), dtype);
  Flow next{{mx::multiply(out, gates)}, {v0}};
  scope.observe(output, next.inputs[0]);
  return next;
}

mx::array RwkvTimeMix::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

/// Nothing stands between the products of rate and of value, and the gate's is a factor of what output reads. Not so the decay's (tanh) and the
/// gate's first (σ), nor v, which a norm by head follows.
std::vector<Edge> RwkvTimeMix::edges() const {
  std::vector<Edge> all;
  const auto add = [&](const LinearSpec& from, const LinearSpec& to) {
    Edge edge;
    edge.producer = from.path;
    edge.rows = Part::piece(Role::other, 0, from.out);
    edge.consumers = {to.path};
    edge.channels = edge.head_dim = to.in;
    all.push_back(std::move(edge));
  };
  add(rate.first, rate.second);
  if (value) add(value->first, value->second);
  add(gate.second, output);
  return all;
}

void RwkvChannelMix::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&key, op, first_stage});
  all.readings.push_back({&value, op, first_stage + 1});
  all.parameters.push_back(&mix);
}

Flow RwkvChannelMix::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  Flow first{{mixed(scope, preceding(scope.context, scope.block, mix.path, normed, 1), mix)}, {}};
  scope.observe(key, first.inputs[0]);
  return first;
}

Flow RwkvChannelMix::advance(const Scope& scope, int, const Flow& at) const {
  Flow next{{kernels::activate(kernels::linear(at.inputs[0], scope.weight(key)), kernels::Activation::relu2)}, {}};
  scope.observe(value, next.inputs[0]);
  return next;
}

mx::array RwkvChannelMix::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(value), residual);
}

std::vector<Edge> RwkvChannelMix::edges() const {
  Edge edge;
  edge.producer = key.path;
  edge.rows = Part::piece(Role::up, 0, key.out);
  edge.consumers = {value.path};
  edge.channels = edge.head_dim = value.in;
  edge.degree = 2;
  return {edge};
}

}  // namespace lquant::model
