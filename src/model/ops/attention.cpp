#include "model/ops/attention.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "model/norm.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

/// Rows of a product [..., out] that belong to a part: [..., rows].
mx::array columns_of(const mx::array& y, const Part& part) {
  auto shape = y.shape();
  const int count = part.rows / part.run;
  auto grouped = shape;
  grouped.back() = count;
  grouped.push_back(part.stride);
  const auto groups = mx::reshape(y, grouped);
  auto start = mx::Shape(grouped.size(), 0), stop = grouped;
  start.back() = part.first;
  stop.back() = part.first + part.run;
  shape.back() = part.rows;
  return mx::reshape(mx::slice(groups, start, stop), shape);
}

/// w0 · the token before + w1 · the token itself; x [B, T, Hkv, D].
mx::array tapped(const Scope& scope, const ParameterSpec& taps, const mx::array& x) {
  const auto weights = mx::astype(mx::reshape(scope.tensor(taps.path), {x.shape(2), 2}), x.dtype());
  const auto tap = [&](int i) { return mx::slice(weights, {0, i}, {x.shape(2), i + 1}); };
  const auto both = preceding(scope.context, scope.block, taps.path, x, 1);
  return mx::add(mx::multiply(both[1], tap(0)), mx::multiply(both[0], tap(1)));
}

/// x in whole steps of 8 bits, in f32, with the gradient of what is not rounded (straight-through, arXiv 1308.3432); none where a step is out of
/// range.
mx::array stepped(const Scope& scope, const ParameterSpec& spec, const mx::array& x) {
  const auto step = mx::astype(scope.tensor(spec.path), mx::float32);
  const auto within = mx::clip(mx::divide(mx::astype(x, mx::float32), step), mx::array(-128.0f), mx::array(127.0f));
  const auto fixed = mx::stop_gradient(within);
  const auto steps = mx::add(mx::round(fixed), mx::subtract(within, fixed));  // what is added is 0
  return mx::astype(mx::multiply(steps, step), x.dtype());
}

/// Nothing where the factor is 1 for all positions below `longest`.
mx::array heated(const Scope& scope, const QueryTemperature& temperature, const mx::array& q, int longest) {
  if (longest <= temperature.period) return q;
  const auto places = mx::astype(positions(scope.context, q.shape(0), q.shape(1)), mx::float32);
  const auto periods = mx::floor(mx::divide(places, mx::array(static_cast<float>(temperature.period))));
  const auto factor = mx::add(mx::array(1.0f), mx::multiply(mx::array(temperature.beta), mx::log(mx::add(mx::array(1.0f), periods))));
  return mx::multiply(q, mx::reshape(mx::astype(factor, q.dtype()), {q.shape(0), q.shape(1), 1, 1}));
}

}  // namespace

std::vector<Part> parts_in_order(int q, int kv) {
  return {Part::piece(Role::q, 0, q), Part::piece(Role::k, q, kv), Part::piece(Role::v, q + kv, kv)};
}

std::vector<Part> parts_by_group(int kv_heads, int repeats, int head_dim) {
  const int stride = (repeats + 2) * head_dim, q = repeats * head_dim;
  return {{Role::q, kv_heads * q, 0, q, stride},
          {Role::k, kv_heads * head_dim, q, head_dim, stride},
          {Role::v, kv_heads * head_dim, q + head_dim, head_dim, stride}};
}

void Attention::contents(int op, int first_stage, Contents& all) const {
  for (const auto& linear : inputs) all.readings.push_back({&linear, op, first_stage});
  for (const auto& linear : unread) all.readings.push_back({&linear, op, first_stage});
  all.readings.push_back({&output, op, first_stage + 1});
  for (const auto* norm : {&q_norm, &k_norm, &v_norm, &unread_norm})
    if (*norm) all.norms.push_back(&**norm);
  for (const auto* parameter : {&sinks, &k_taps, &v_taps, &k_step, &v_step})
    if (*parameter) all.parameters.push_back(&**parameter);
}

std::vector<mx::array> Attention::project(const Scope& scope, const mx::array& h) const {
  std::vector<kernels::LinearWeight> weights;
  if (inputs.size() > 1 || inputs[0].parts.empty()) {
    for (const auto& linear : inputs) weights.push_back(scope.weight(linear));
    return kernels::linears(h, weights);
  }
  const auto& parts = inputs[0].parts;
  if (std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.contiguous(); })) {
    for (const auto& part : parts) weights.push_back(scope.weight(inputs[0], part));
    return kernels::linears(h, weights);
  }
  const auto y = kernels::linear(h, scope.weight(inputs[0]));
  std::vector<mx::array> all;
  for (const auto& part : parts) all.push_back(columns_of(y, part));
  return all;
}

Flow Attention::attend(const Scope& scope, const mx::array& h) const {
  const auto& context = scope.context;
  if (context.cache && context.segments) throw std::invalid_argument("[model] segments and a cache exclude each other");
  const auto* branches = context.branches ? &*context.branches : nullptr;
  if (branches && !context.segments) throw std::invalid_argument("[model] branches need segments");
  if (branches && window > 0 && branches->longest > window)
    throw std::invalid_argument("[model] a text with its ending is longer than the window; give it without branches");
  const int batch = h.shape(0), length = h.shape(1);
  auto projected = project(scope, h);
  if (clip > 0)
    for (auto& x : projected) x = mx::clip(x, mx::array(-clip, x.dtype()), mx::array(clip, x.dtype()));
  const auto split = [&](const mx::array& x, int count) { return mx::reshape(x, {batch, length, count, head_dim}); };
  // A norm over all heads comes before they are taken apart.
  const auto whole = [&](const std::optional<NormSpec>& norm, const mx::array& x) {
    return norm && norm->size != head_dim ? normed(scope.tensors, *norm, x) : x;
  };
  const auto by_head = [&](const std::optional<NormSpec>& norm, const mx::array& x) {
    return norm && norm->size == head_dim ? normed(scope.tensors, *norm, x) : x;
  };
  auto q = split(whole(q_norm, projected[0]), heads);
  const int of_keys = shared ? 0 : 1, of_values = values_from_keys ? of_keys : shared ? 0 : 2;
  // Those of another block need no more but to be fetched.
  auto k = shared ? q : split(whole(k_norm, projected[of_keys]), kv_heads), v = shared ? q : split(projected[of_values], kv_heads);
  if (k_taps) k = tapped(scope, *k_taps, k);
  if (v_taps) v = tapped(scope, *v_taps, v);
  if (!shared) v = by_head(v_norm, v);
  if (!norms_behind_rope) {
    q = by_head(q_norm, q);
    if (!shared) k = by_head(k_norm, k);
  }

  const int offset = context.cache ? context.cache->length() : context.offset;
  const int longest = branches ? branches->longest : offset + length;
  if (rope) {
    const auto inv_freq = inverse_frequencies(*rope, longest);
    // Scores of rotated heads know distances alone. A norm's weights behind the rotation know places, so there each text counts its own.
    std::optional<mx::array> places;
    if (branches)
      places = branches->positions;
    else if (context.segments && norms_behind_rope)
      places = positions(context, batch, length);
    q = kernels::rope(q, inv_freq, offset, rope->magnitude, rope->interleaved, places);
    if (!shared) k = kernels::rope(k, inv_freq, offset, rope->magnitude, rope->interleaved, places);
  }
  if (norms_behind_rope) {
    q = by_head(q_norm, q);
    if (!shared) k = by_head(k_norm, k);
  }
  if (k_step) k = stepped(scope, *k_step, k);
  if (v_step) v = stepped(scope, *v_step, v);
  if (temperature) q = heated(scope, *temperature, q, longest);
  Flow next;
  const int width = kv_heads * head_dim;
  if (gives)
    for (const auto* x : {&k, &v}) next.kept.push_back(mx::reshape(*x, {batch, length, width}));
  kernels::AttentionArgs args;
  args.scale = scale;
  args.window = branches ? 0 : window;
  args.softcap = softcap;
  if (branches) args.branch_bits = Branches::kBits;
  if (context.cache) {
    args.offset = offset;
    std::tie(k, v) = shared ? context.cache->appended(shared->block, length) : context.cache->append(scope.block, k, v);
  } else if (shared) {
    k = split(scope.columns({shared->first, width}), kv_heads);
    v = split(scope.columns({shared->first + width, width}), kv_heads);
  }
  if (tiled) k = mx::tile(k, {1, 1, heads / kv_heads, 1}), v = mx::tile(v, {1, 1, heads / kv_heads, 1});
  const auto dtype = q.dtype();
  if (wide && dtype == mx::float16)
    for (auto* x : {&q, &k, &v}) *x = mx::astype(*x, mx::float32);
  const auto out = kernels::attention(q, k, v, args, context.segments, sinks ? std::optional(scope.tensor(sinks->path)) : std::nullopt);
  next.inputs.push_back(mx::reshape(mx::astype(out, dtype), {batch, length, heads * head_dim}));
  return next;
}

Flow Attention::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  for (const auto& linear : inputs) scope.observe(linear, normed);
  return {{normed}, {}};
}

Flow Attention::advance(const Scope& scope, int, const Flow& at) const {
  auto next = attend(scope, at.inputs[0]);
  scope.observe(output, next.inputs[0]);
  return next;
}

mx::array Attention::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

std::vector<std::string> Attention::readers() const {
  std::vector<std::string> all;
  for (const auto& linear : inputs) all.push_back(linear.path);
  return all;
}

std::vector<Edge> Attention::edges() const {
  // A norm on the values takes their scale away, steps and limits do not bear one; what later blocks read, or keys read too, keeps its own.
  if (v_norm || v_step || clip > 0 || shared || gives || values_from_keys) return {};
  Edge edge;
  edge.producer = inputs.back().path;
  edge.rows = inputs.size() == 1 ? inputs[0].parts[2] : Part::piece(Role::v, 0, inputs.back().out);
  edge.consumers = {output.path};
  edge.channels = kv_heads * head_dim;
  edge.head_dim = head_dim;
  edge.repeats = heads / kv_heads;
  edge.tiled = tiled;
  return {edge};
}

Traits Attention::traits() const { return {.mixed_by = 1, .window = window}; }

}  // namespace lquant::model
