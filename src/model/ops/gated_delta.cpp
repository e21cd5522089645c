// The roundings are mlx_lm's: each factor of queries and keys is one, β is of the compute dtype, decays are f32.
#include "model/ops/gated_delta.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "kernels/gated.h"
#include "kernels/gated_delta.h"
#include "kernels/linear.h"
#include "kernels/norm.h"
#include "model/norm.h"
#include "model/ops/parts.h"
#include "model/ops/taps.h"

namespace lquant::model {
namespace {

/// Queries, keys and values side by side [B, T, channels], and the gate, b and a.
struct Products {
  mx::array mixed, gate, b, a;
};

Products project(const Scope& scope, const GatedDelta& op, const mx::array& h) {
  std::vector<kernels::LinearWeight> weights;
  for (const auto& linear : op.inputs) weights.push_back(scope.weight(linear));
  const auto products = kernels::linears(h, weights);
  // Where queries, keys and values are one linear's in this order, nothing needs to be moved.
  if (const auto& parts = op.inputs[0].parts; parts.size() == 3 && std::ranges::all_of(parts, &Part::contiguous))
    return {products[0], products[1], products[2], products[3]};
  std::vector<mx::array> all;
  for (std::size_t i = 0; i < products.size(); ++i) {
    if (op.inputs[i].parts.empty()) all.push_back(products[i]);
    for (const auto& part : op.inputs[i].parts) all.push_back(columns_of(products[i], part));
  }
  return {mx::concatenate({all[0], all[1], all[2]}, -1), all[3], all[4], all[5]};
}

mx::array columns(const mx::array& x, int first, int count) { return columns_of(x, Part::piece(Role::other, first, count)); }

mx::array convolve_each(const Scope& scope, const GatedDelta& op, const mx::array& mixed) {
  if (op.taps.size() == 1) return convolved(scope, op.taps[0], mixed);
  std::vector<mx::array> all;
  int first = 0;
  for (const auto& taps : op.taps) {
    all.push_back(convolved(scope, taps, columns(mixed, first, taps.shape[0])));
    first += taps.shape[0];
  }
  return mx::concatenate(all, -1);
}

/// x / √(Σ x² + 1e-6) · factor, over the last axis: an RMS norm, whose mean over as many numbers asks for another eps and another factor.
mx::array unit(const mx::array& x, double factor) {
  const int size = x.shape(-1);
  const auto weight = mx::full({size}, static_cast<float>(factor / std::sqrt(static_cast<double>(size))), x.dtype());
  return kernels::rms_norm(x, weight, static_cast<float>(1e-6 / size));
}

mx::array softplus(const mx::array& x) { return mx::logaddexp(x, mx::array(0.0f, x.dtype())); }

}  // namespace

void GatedDelta::contents(int op, int first_stage, Contents& all) const {
  for (const auto& linear : inputs) all.readings.push_back({&linear, op, first_stage});
  if (gate_up) all.readings.push_back({&*gate_up, op, first_stage + 1, 0});
  if (decay_up) all.readings.push_back({&*decay_up, op, first_stage + 1, 1});
  all.readings.push_back({&output, op, first_stage + stages() - 1});
  all.norms.push_back(&norm);
  for (const auto& parameter : taps) all.parameters.push_back(&parameter);
  all.parameters.push_back(&a_log);
  all.parameters.push_back(&dt_bias);
}

Flow GatedDelta::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  for (const auto& linear : inputs) scope.observe(linear, normed);
  return {{normed}, {}};
}

/// Logarithms of the decays, f32 [B, T, value heads], or [B, T, value heads, key_dim].
mx::array GatedDelta::log_decays(const Scope& scope, const mx::array& a) const {
  const auto by_head = [&](const mx::array& x) { return by_channel ? mx::unflatten(x, -1, {value_heads, key_dim}) : x; };
  const auto rates = mx::exp(mx::astype(mx::flatten(scope.tensor(a_log.path)), mx::float32));
  const auto rate = by_channel ? mx::expand_dims(rates, -1) : rates;
  const auto& bias = scope.tensor(dt_bias.path);
  if (!lower_bound) return mx::negative(mx::multiply(rate, by_head(softplus(mx::add(a, bias)))));
  const auto speed = by_head(mx::add(mx::astype(a, mx::float32), bias));
  return mx::multiply(mx::array(*lower_bound), mx::sigmoid(mx::multiply(rate, speed)));
}

Flow GatedDelta::advance(const Scope& scope, int stage, const Flow& at) const {
  const auto& context = scope.context;
  if (context.branches) throw std::invalid_argument("[model] endings cannot go on from a state; give each text whole");
  auto flow = at;
  if (stage == 1) {
    const auto products = project(scope, *this, at.inputs[0]);
    flow = {{products.gate, products.a}, {products.mixed, products.b}};
    if (gate_up) scope.observe(*gate_up, products.gate);
    if (decay_up) {
      scope.observe(*decay_up, products.a);
      return flow;
    }
  }
  const auto up = [&](const std::optional<LinearSpec>& linear, const mx::array& x) { return linear ? kernels::linear(x, scope.weight(*linear)) : x; };
  const auto gate = up(gate_up, flow.inputs[0]), a = up(decay_up, flow.inputs[1]);
  const int batch = gate.shape(0), length = gate.shape(1), keys = key_heads * key_dim, values = value_heads * value_dim;
  const auto mixed = kernels::activate(convolve_each(scope, *this, flow.kept[0]), kernels::Activation::silu);
  const auto by_head = [&](const mx::array& x, int heads) { return mx::reshape(x, {batch, length, heads, x.shape(-1) / heads}); };
  const auto q = unit(by_head(columns(mixed, 0, keys), key_heads), 1 / std::sqrt(static_cast<double>(key_dim)));
  const auto k = unit(by_head(columns(mixed, keys, keys), key_heads), 1);
  const auto v = by_head(columns(mixed, 2 * keys, values), value_heads);

  auto beta = mx::sigmoid(flow.kept[1]);
  if (doubled) beta = mx::multiply(beta, mx::array(2.0f, beta.dtype()));
  const auto kept = context.cache ? context.cache->kept(scope.block, a_log.path) : std::nullopt;
  auto [y, state] = kernels::gated_delta(q, k, v, log_decays(scope, a), beta, context.segments, kept);
  if (context.cache) context.cache->keep(scope.block, a_log.path, state);
  y = mx::reshape(normed(scope.tensors, norm, y), {batch, length, values});
  Flow next{{kernels::gated(gate, y, activation)}, {}};
  scope.observe(output, next.inputs[0]);
  return next;
}

mx::array GatedDelta::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

std::vector<std::string> GatedDelta::readers() const {
  std::vector<std::string> all;
  for (const auto& linear : inputs) all.push_back(linear.path);
  return all;
}

/// The norm's weight is one for all heads; nothing that stands before it passes a scale on. Two linears of low rank have nothing between them.
std::vector<Edge> GatedDelta::edges() const {
  Edge edge;
  edge.producer = norm.path;
  edge.norm = norm;
  edge.consumers = {output.path};
  edge.channels = edge.head_dim = value_dim;
  edge.repeats = value_heads;
  std::vector<Edge> all{edge};
  const auto add = [&](const LinearSpec& down, const std::optional<LinearSpec>& up) {
    if (!up) return;
    Edge between;
    between.producer = down.path;
    between.rows = Part::piece(Role::other, 0, down.out);
    between.consumers = {up->path};
    between.channels = between.head_dim = down.out;
    all.push_back(std::move(between));
  };
  add(inputs[inputs.size() - 3], gate_up);
  add(inputs.back(), decay_up);
  return all;
}

}  // namespace lquant::model
