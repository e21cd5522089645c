#include "model/ops/attention.h"

#include <mlx/mlx.h>

#include <stdexcept>
#include <tuple>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "model/norm.h"
#include "model/ops/parts.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

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

/// Of the keys that the mask, bool [B, H, T, S], leaves; otherwise as kernels::attention.
mx::array under_mask(const mx::array& q, const mx::array& k, const mx::array& v, float scale, const mx::array& mask) {
  const auto heads_first = [](const mx::array& x) { return mx::swapaxes(x, 1, 2); };
  return heads_first(mx::fast::scaled_dot_product_attention(heads_first(q), heads_first(k), heads_first(v), scale, "", mask));
}

/// x [B, T, heads · D] times the activated gate [B, T, heads · D or heads].
mx::array gated(const OutputGate& gate, const mx::array& x, const mx::array& product, int heads) {
  const bool by_head = product.shape(-1) == heads, sigmoid = gate.activation == OutputGate::Activation::sigmoid;
  if (sigmoid && !by_head) return kernels::gated(product, x, kernels::Activation::sigmoid);
  const auto softplus = [&] { return mx::logaddexp(mx::astype(product, mx::float32), mx::array(0.0f)); };
  const auto factor = mx::astype(sigmoid ? mx::sigmoid(product) : softplus(), x.dtype());
  if (!by_head) return mx::multiply(x, factor);
  return mx::flatten(mx::multiply(mx::unflatten(x, -1, {heads, x.shape(-1) / heads}), mx::expand_dims(factor, -1)), -2, -1);
}

}  // namespace

kernels::AttentionArgs attention_args(const Context& context, float scale, int window) {
  if (context.cache && context.segments) throw std::invalid_argument("[model] segments and a cache exclude each other");
  if (context.branches && !context.segments) throw std::invalid_argument("[model] branches need segments");
  if (context.branches && window > 0 && context.branches->longest > window)
    throw std::invalid_argument("[model] a text with its ending is longer than the window; give it without branches");
  kernels::AttentionArgs args;
  args.scale = scale;
  args.window = context.branches ? 0 : window;
  if (context.branches) args.branch_bits = Branches::kBits;
  if (context.cache) args.offset = context.cache->length();
  return args;
}

int longest_text(const Context& context, int length) {
  if (context.branches) return context.branches->longest;
  return (context.cache ? context.cache->length() : context.offset) + length;
}

mx::array heated(const Scope& scope, const QueryTemperature& temperature, const mx::array& q, int longest) {
  if (longest + temperature.first <= temperature.period) return q;
  const auto own = positions(scope.context, q.shape(0), q.shape(1));
  const auto places = mx::astype(temperature.first == 0 ? own : mx::add(own, mx::array(temperature.first, mx::int32)), mx::float32);
  const auto periods = mx::floor(mx::divide(places, mx::array(static_cast<float>(temperature.period))));
  const auto factor = mx::add(mx::array(1.0f), mx::multiply(mx::array(temperature.beta), mx::log(mx::add(mx::array(1.0f), periods))));
  return mx::multiply(q, mx::reshape(mx::astype(factor, q.dtype()), {q.shape(0), q.shape(1), 1, 1}));
}

namespace {

/// gate · a + (1 − gate) · b, head by head; all [B, T, heads, head_dim].
mx::array mixed(const Scope& scope, const Attention::Again& again, const mx::array& q, const mx::array& a, const mx::array& b) {
  const auto weight = mx::expand_dims(mx::astype(scope.tensor(again.gate.path), q.dtype()), -1);
  const auto bias = mx::expand_dims(mx::astype(scope.tensor(again.gate_bias.path), q.dtype()), -1);
  const auto scores = mx::transpose(mx::matmul(mx::transpose(q, {0, 2, 1, 3}), weight), {0, 2, 1, 3});
  const auto gate = mx::sigmoid(mx::add(scores, bias));
  return mx::add(mx::multiply(gate, a), mx::multiply(mx::subtract(mx::array(1, q.dtype()), gate), b));
}

}  // namespace

std::vector<Part> parts_in_order(int q, int kv) {
  return {Part::piece(Role::q, 0, q), Part::piece(Role::k, q, kv), Part::piece(Role::v, q + kv, kv)};
}

std::vector<Part> parts_with_gate(int heads, int head_dim) {
  const int rows = heads * head_dim, stride = 2 * head_dim;
  return {{Role::q, rows, 0, head_dim, stride}, {Role::other, rows, head_dim, head_dim, stride}};
}

std::vector<Part> parts_by_group(int kv_heads, int repeats, int head_dim) {
  const int stride = (repeats + 2) * head_dim, q = repeats * head_dim;
  return {{Role::q, kv_heads * q, 0, q, stride},
          {Role::k, kv_heads * head_dim, q, head_dim, stride},
          {Role::v, kv_heads * head_dim, q + head_dim, head_dim, stride}};
}

/// Those that read the branch's input.
std::vector<const LinearSpec*> Attention::first_readers() const {
  std::vector<const LinearSpec*> all;
  for (const auto& linear : inputs) all.push_back(&linear);
  if (gate && gate->linear) all.push_back(&*gate->linear);
  if (indexer)
    for (const auto* linear : indexer->linears()) all.push_back(linear);
  return all;
}

void Attention::contents(int op, int first_stage, Contents& all) const {
  for (const auto* linear : first_readers()) all.readings.push_back({linear, op, first_stage});
  for (const auto& linear : unread) all.readings.push_back({&linear, op, first_stage});
  all.readings.push_back({&output, op, first_stage + 1});
  for (const auto* norm : {&q_norm, &k_norm, &v_norm, &unread_norm})
    if (*norm) all.norms.push_back(&**norm);
  if (indexer)
    for (const auto* norm : indexer->norms()) all.norms.push_back(norm);
  for (const auto* parameter : {&sinks, &k_taps, &v_taps, &k_step, &v_step})
    if (*parameter) all.parameters.push_back(&**parameter);
  if (again)
    for (const auto* parameter : {&again->gate, &again->gate_bias}) all.parameters.push_back(parameter);
}

/// Of the queries, keys, values; last of all the gate's, where there is one.
std::vector<mx::array> Attention::project(const Scope& scope, const mx::array& h) const {
  const auto& parts = inputs[0].parts;
  const bool in_pieces = !parts.empty() && std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.contiguous(); });
  std::vector<kernels::LinearWeight> weights;
  if (in_pieces) {
    for (const auto& part : parts) weights.push_back(scope.weight(inputs[0], part));
  } else {
    for (const auto& linear : inputs) weights.push_back(scope.weight(linear));
  }
  if (gate && gate->linear) weights.push_back(scope.weight(*gate->linear));
  auto products = kernels::linears(h, weights);
  if (parts.empty() || in_pieces) return products;
  std::vector<mx::array> all;
  for (const auto& part : parts) all.push_back(columns_of(products[0], part));
  all.insert(all.end(), products.begin() + 1, products.end());
  if (gate && !gate->linear) std::rotate(all.begin() + 1, all.begin() + 2, all.end());
  return all;
}

/// Keys and values that another run of a block has left.
std::pair<mx::array, mx::array> Attention::carried_by(const Scope& scope, const Shared& from, int batch, int length) const {
  if (scope.context.cache) return scope.context.cache->appended(from.block, length);
  const int width = kv_heads * head_dim;
  const auto split = [&](int first) { return mx::reshape(scope.columns({first, width}), {batch, length, kv_heads, head_dim}); };
  return {split(from.first), split(from.first + width)};
}

Flow Attention::attend(const Scope& scope, const mx::array& h) const {
  const auto& context = scope.context;
  auto args = attention_args(context, scale, traits().window);
  args.softcap = softcap;
  args.chunk = context.branches ? 0 : chunk;
  const int batch = h.shape(0), length = h.shape(1);
  auto projected = project(scope, h);
  if (limit > 0)
    for (auto& x : projected) x = mx::clip(x, mx::array(-limit, x.dtype()), mx::array(limit, x.dtype()));
  const auto split = [&](const mx::array& x, int count) { return mx::reshape(x, {batch, length, count, x.shape(-1) / count}); };
  // A norm over all heads comes before they are taken apart.
  const auto whole = [&](const std::optional<NormSpec>& norm, const mx::array& x) {
    return norm && norm->size != head_dim ? normed(scope.tensors, *norm, x) : x;
  };
  const auto by_head = [&](const std::optional<NormSpec>& norm, const mx::array& x) {
    return norm && norm->size == head_dim ? normed(scope.tensors, *norm, x) : x;
  };
  auto q = split(whole(q_norm, projected[0]), heads);
  if (shared && shares_products) {
    const int width = kv_heads * head_dim;
    for (const int first : {shared->first, shared->first + width}) projected.push_back(scope.columns({first, width}));
  }
  const bool fetched = shared && !shares_products;
  const int of_keys = fetched ? 0 : 1, of_values = values_from_keys ? of_keys : fetched ? 0 : 2;
  // Those of another block need no more but to be fetched.
  auto k = fetched ? q : split(whole(k_norm, projected[of_keys]), kv_heads), v = fetched ? q : split(projected[of_values], kv_heads);
  if (k_taps) k = tapped(scope, *k_taps, k);
  if (v_taps) v = tapped(scope, *v_taps, v);
  if (!fetched) v = by_head(v_norm, v);
  if (value_factor != 1) v = mx::multiply(v, mx::array(value_factor, v.dtype()));
  if (!norms_behind_rope) {
    q = by_head(q_norm, q);
    if (!fetched) k = by_head(k_norm, k);
  }

  const int offset = context.cache ? context.cache->length() : context.offset;
  const int longest = longest_text(context, length);
  if (rope) {
    const auto inv_freq = inverse_frequencies(*rope, longest);
    // Scores of rotated heads know distances alone. A norm's weights behind the rotation know places, as a gate's do, so there each text counts its
    // own.
    std::optional<mx::array> places;
    if (context.branches)
      places = context.branches->positions;
    else if (context.segments && (norms_behind_rope || again))
      places = positions(context, batch, length);
    q = kernels::rope(q, inv_freq, offset, rope->magnitude, rope->interleaved, places);
    if (!fetched) k = kernels::rope(k, inv_freq, offset, rope->magnitude, rope->interleaved, places);
  }
  if (norms_behind_rope) {
    q = by_head(q_norm, q);
    if (!fetched) k = by_head(k_norm, k);
  }
  if (k_step) k = stepped(scope, *k_step, k);
  if (v_step) v = stepped(scope, *v_step, v);
  if (temperature) q = heated(scope, *temperature, q, longest);
  const auto chosen = indexer ? indexer->chosen_keys(scope, h, heads, args) : std::nullopt;
  const bool returns = again && scope.pass > 0;
  Flow next;
  if (gives && shares_products) next.kept = {projected[of_keys], projected[of_values]};
  if (gives && !shares_products && !returns)
    for (const auto* x : {&k, &v}) next.kept.push_back(mx::reshape(*x, {batch, length, kv_heads * head_dim}));
  if (fetched)
    std::tie(k, v) = carried_by(scope, *shared, batch, length);
  else if (context.cache)
    std::tie(k, v) = context.cache->append(scope.block, k, v);
  const auto dtype = q.dtype();
  const auto own_sinks = sinks ? std::optional(scope.tensor(sinks->path)) : std::nullopt;
  const auto look = [&](mx::array keys, mx::array values, int window) {
    args.window = context.branches ? 0 : window;
    if (chosen) return under_mask(q, keys, values, scale, *chosen);
    if (tiled) keys = mx::tile(keys, {1, 1, heads / kv_heads, 1}), values = mx::tile(values, {1, 1, heads / kv_heads, 1});
    auto queries = q;
    if (wide && dtype == mx::float16)
      for (auto* x : {&queries, &keys, &values}) *x = mx::astype(*x, mx::float32);
    return mx::astype(kernels::attention(queries, keys, values, args, context.segments, own_sinks), dtype);
  };
  auto out = look(k, v, returns ? again->window : window);
  if (returns) {
    const auto [keys, values] = carried_by(scope, again->first, batch, length);
    out = mixed(scope, *again, q, look(keys, values, window), out);
  }
  if (result_norm) out = normed(scope.tensors, *result_norm, out);
  const auto together = mx::reshape(out, {batch, length, heads * width_of_values()});
  next.inputs.push_back(gate ? gated(*gate, together, projected.back(), heads) : together);
  return next;
}

Flow Attention::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  for (const auto* linear : first_readers()) scope.observe(*linear, normed);
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
  for (const auto* linear : first_readers()) all.push_back(linear->path);
  return all;
}

std::vector<Edge> Attention::edges() const {
  // A norm on the values or of what is made of them takes their scale away, steps and limits do not bear one; what later blocks read, or keys read
  // too, keeps its own. A later run of this block reads them for the same output.
  if (limit > 0 || v_norm || result_norm || v_step || shared || (gives && !again) || values_from_keys) return {};
  Edge edge;
  edge.producer = inputs.back().path;
  edge.rows = inputs.size() == 1 ? inputs[0].parts[2] : Part::piece(Role::v, 0, inputs.back().out);
  edge.consumers = {output.path};
  edge.channels = kv_heads * width_of_values();
  edge.head_dim = width_of_values();
  edge.repeats = heads / kv_heads;
  edge.tiled = tiled;
  return {edge};
}

Traits Attention::traits() const { return {.mixed_by = 1, .window = again ? again->window : window > 0 ? window : chunk}; }

}  // namespace lquant::model
