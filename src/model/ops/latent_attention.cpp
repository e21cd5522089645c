// Queries and keys of the kernel are a head's own features and the turned ones side by side, so that one call serves scores that mlx_lm adds up of
// two products. Columns of a fused linear are taken by its rows where they stand in one piece: then each product is of contiguous numbers.
#include "model/ops/latent_attention.h"

#include <mlx/mlx.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "kernels/gated.h"
#include "kernels/linear.h"
#include "model/norm.h"
#include "model/ops/parts.h"

namespace lquant::model {
namespace {

/// Features first … first + count of [B, T, heads, D].
mx::array features(const mx::array& x, int first, int count) {
  return mx::slice(x, {0, 0, 0, first}, {x.shape(0), x.shape(1), x.shape(2), first + count});
}

mx::array in_heads(const mx::array& x, int heads) { return mx::reshape(x, {x.shape(0), x.shape(1), heads, -1}); }
mx::array side_by_side(const mx::array& x) { return mx::reshape(x, {x.shape(0), x.shape(1), -1}); }

mx::array scaled(const mx::array& x, float factor) { return factor == 1 ? x : mx::multiply(x, mx::array(factor, x.dtype())); }

/// Each head's own features, then others, which may be one head's that all share.
mx::array joined(const mx::array& own, const mx::array& others) {
  auto shape = own.shape();
  shape.back() = others.shape(-1);
  return mx::concatenate({own, mx::broadcast_to(others, shape)}, -1);
}

/// Whether scores and results are computed in the latent's space: of one token that is cheaper than keys and values of all.
bool in_latent_space(const Scope& scope, const mx::array& x) { return scope.context.cache && x.shape(1) == 1; }

}  // namespace

std::vector<Part> latent_parts(int rank, int rotated) { return {Part::piece(Role::kv, 0, rank), Part::piece(Role::k, rank, rotated)}; }

std::vector<Part> key_value_parts(int heads, int nope, int value) {
  return {{Role::k, heads * nope, 0, nope, nope + value}, {Role::v, heads * value, nope, value, nope + value}};
}

/// Those that read the branch's input.
std::vector<const LinearSpec*> LatentAttention::first_readers() const {
  std::vector<const LinearSpec*> all{q_a ? &*q_a : &q, &kv_a};
  if (gate) all.push_back(&*gate);
  if (indexer) all.insert(all.end(), {&indexer->wk, &indexer->weights});
  return all;
}

/// Those that read the queries' latent.
std::vector<const LinearSpec*> LatentAttention::query_readers() const {
  std::vector<const LinearSpec*> all;
  if (q_a) all.push_back(&q);
  if (indexer) all.push_back(&indexer->wq_b);
  return all;
}

void LatentAttention::contents(int op, int first_stage, Contents& all) const {
  int stage = first_stage;
  const auto add = [&](const LinearSpec& linear) { all.readings.push_back({&linear, op, stage}); };
  for (const auto* linear : first_readers()) add(*linear);
  if (q_a) ++stage;
  for (const auto* linear : query_readers()) add(*linear);
  for (const auto* linear : {&kv_b, &embed_q, &unembed_out})
    if (*linear) ++stage, add(**linear);
  ++stage, add(o);
  if (q_a_norm) all.norms.push_back(&*q_a_norm);
  all.norms.push_back(&kv_a_norm);
  if (indexer) all.norms.push_back(&indexer->k_norm);
}

Flow LatentAttention::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  for (const auto* linear : first_readers()) scope.observe(*linear, normed);
  return {{normed}, {}};
}

/// Applies what reads the branch's input. Inputs: that of q's product, or the product; kept: the latent and the turned key, and of an indexer its key
/// and weights.
Flow LatentAttention::with_latent(const Scope& scope, const Flow& at) const {
  const auto& x = at.inputs[0];
  const auto made = kernels::linears(x, {scope.weight(q_a ? *q_a : q), scope.weight(kv_a, kv_a.parts[0]), scope.weight(kv_a, kv_a.parts[1])});
  Flow next{{q_a_norm ? normed(scope.tensors, *q_a_norm, made[0]) : made[0]}, {}};
  next.kept = {scaled(normed(scope.tensors, kv_a_norm, made[1]), latent_factor), side_by_side(turned(scope, rope, in_heads(made[2], 1)))};
  if (!indexer) return next;
  const auto fixed = mx::stop_gradient(x);
  const auto key = normed(scope.tensors, indexer->k_norm, kernels::linear(fixed, scope.weight(indexer->wk)));
  next.kept.push_back(side_by_side(turned(scope, indexer->rope, in_heads(key, 1))));
  const double factor = 1 / std::sqrt(double(indexer->heads) * indexer->dim);
  next.kept.push_back(scaled(kernels::linear(fixed, scope.weight(indexer->weights)), static_cast<float>(factor)));
  return next;
}

/// `at` with the product of q as its input → what kv_b or embed_q reads.
Flow LatentAttention::with_queries(const Scope& scope, const Flow& at) const {
  const auto all = scaled(in_heads(at.inputs[0], heads), query_factor);
  auto own = features(all, 0, nope), places = turned(scope, rope, features(all, nope, rotated));
  if (temperature) {
    const int longest = longest_text(scope.context, all.shape(1));
    own = heated(scope, *temperature, own, longest), places = heated(scope, *temperature, places, longest);
  }
  if (kv_b) {
    scope.observe(*kv_b, at.kept[0]);
    return {{at.kept[0]}, {joined(own, places), at.kept[1]}};
  }
  scope.observe_slices(*embed_q, own);
  Flow next{{own}, {places}};
  next.kept.insert(next.kept.end(), at.kept.begin(), at.kept.end());
  return next;
}

/// Of `keys` keys those that each query reads, bool [B, 1, T, S]; none where all are few enough. `index`: the indexer's keys of all positions, its
/// weights and its queries.
std::optional<mx::array> LatentAttention::chosen_keys(const Scope& scope, const std::vector<mx::array>& index, int keys) const {
  if (index.empty() || keys <= indexer->top_k) return std::nullopt;
  const auto queries = mx::swapaxes(in_heads(index[2], indexer->heads), 1, 2), of_keys = mx::expand_dims(index[0], 1);
  const auto of_heads = mx::maximum(mx::matmul(queries, mx::swapaxes(of_keys, 2, 3)), mx::array(0.0f, queries.dtype()));
  const auto weights = mx::expand_dims(mx::swapaxes(index[1], 1, 2), 3);
  auto scores = mx::sum(mx::multiply(of_heads, weights), 1, /*keepdims=*/true);
  const auto visible = visible_keys(scores.shape(2), keys, attention_args(scope.context, scale), scope.context.segments);
  scores = mx::where(*visible, scores, mx::array(-std::numeric_limits<float>::infinity(), scores.dtype()));
  const int first = keys - indexer->top_k;
  auto start = mx::Shape(4, 0);
  start[3] = first;
  const auto chosen = mx::slice(mx::argpartition(mx::stop_gradient(scores), first, -1), start, scores.shape());
  return mx::logical_and(mx::put_along_axis(mx::zeros(scores.shape(), mx::bool_), chosen, mx::array(true), -1), *visible);
}

/// [B, T, heads · values' features].
mx::array LatentAttention::attended(const Scope& scope, const mx::array& queries, const mx::array& keys, const mx::array& values,
                                    const std::vector<mx::array>& index) const {
  if (const auto mask = chosen_keys(scope, index, keys.shape(1))) {
    const auto heads_first = [](const mx::array& x) { return mx::swapaxes(x, 1, 2); };
    const auto out = mx::fast::scaled_dot_product_attention(heads_first(queries), heads_first(keys), heads_first(values), scale, "", *mask);
    return side_by_side(heads_first(out));
  }
  return side_by_side(kernels::attention(queries, keys, values, attention_args(scope.context, scale), scope.context.segments));
}

Flow LatentAttention::advance(const Scope& scope, int stage, const Flow& at) const {
  const bool last = stage == stages() - 1;
  auto from = at;
  std::optional<mx::array> product;  // the gate's, which is the last of what is kept
  if (gate && stage == 1) product = kernels::linear(at.inputs[0], scope.weight(*gate));
  if (gate && stage > 1) {
    product = at.kept.back();
    from.kept.pop_back();
  }
  auto next = ungated(scope, stage, from);
  if (product && !last) next.kept.push_back(*product);
  if (product && last) {
    const auto& own = next.inputs[0];
    next.inputs = {gate->out == own.shape(-1) ? kernels::gated(*product, own, kernels::Activation::sigmoid)
                                              : side_by_side(mx::multiply(in_heads(own, heads), mx::expand_dims(mx::sigmoid(*product), -1)))};
  }
  if (last) scope.observe(o, next.inputs[0]);
  return next;
}

/// What o reads but for the gate.
Flow LatentAttention::ungated(const Scope& scope, int stage, const Flow& at) const {
  if (stage == 1 && q_a) {
    auto next = with_latent(scope, at);
    for (const auto* linear : query_readers()) scope.observe(*linear, next.inputs[0]);
    return next;
  }
  if (stage == (q_a ? 2 : 1)) {
    if (!q_a) return with_queries(scope, with_latent(scope, at));
    auto kept = at.kept;
    if (indexer) {
      const auto made = kernels::linear(mx::stop_gradient(at.inputs[0]), scope.weight(indexer->wq_b));
      kept.push_back(side_by_side(turned(scope, indexer->rope, in_heads(made, indexer->heads))));
    }
    return with_queries(scope, {{kernels::linear(at.inputs[0], scope.weight(q))}, kept});
  }
  const auto& x = at.inputs[0];
  Flow next;
  if (kv_b) {
    const auto both = in_heads(kernels::linear(x, scope.weight(*kv_b)), heads);
    auto keys = joined(features(both, 0, nope), in_heads(at.kept[1], 1)), values = features(both, nope, value);
    if (auto* cache = scope.context.cache) std::tie(keys, values) = cache->append(scope.block, keys, values);
    next.inputs = {attended(scope, at.kept[0], keys, values)};
  } else if (stage == stages() - 2) {
    // Kept: the turned part of the queries, the latent, the turned key.
    const auto weight = scope.weight(*embed_q).weight;
    const auto all = remembered(scope, kv_a.path, joined(in_heads(at.kept[1], 1), in_heads(at.kept[2], 1)));
    const auto latent = features(all, 0, rank);
    next.inputs = {at.kept[1]};
    if (in_latent_space(scope, x)) {
      next.kept = {joined(through_each(x, weight), at.kept[0]), all, latent};
    } else {
      const auto transposed = mx::reshape(mx::swapaxes(weight, 1, 2), {heads * nope, rank});
      const auto keys = in_heads(kernels::linear(side_by_side(latent), {transposed}), heads);
      next.kept = {joined(x, at.kept[0]), joined(keys, features(all, rank, rotated)), latent};
    }
    if (indexer) {
      next.kept.push_back(remembered(scope, indexer->wk.path, at.kept[3]));
      next.kept.insert(next.kept.end(), at.kept.begin() + 4, at.kept.end());
    }
    scope.observe(*unembed_out, next.inputs[0]);
    return next;
  } else {
    const auto weight = scope.weight(*unembed_out).weight;
    const auto &queries = at.kept[0], &keys = at.kept[1], &latent = at.kept[2];
    const std::vector<mx::array> index(at.kept.begin() + 3, at.kept.end());
    if (in_latent_space(scope, x)) {
      next.inputs = {side_by_side(through_each(in_heads(attended(scope, queries, keys, latent, index), heads), weight))};
    } else {
      const auto values = kernels::linear(side_by_side(latent), {mx::reshape(weight, {heads * value, rank})});
      next.inputs = {attended(scope, queries, keys, in_heads(values, heads), index)};
    }
  }
  return next;
}

mx::array LatentAttention::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(o), residual);
}

std::vector<std::string> LatentAttention::readers() const {
  std::vector<std::string> all;
  for (const auto* linear : first_readers()) all.push_back(linear->path);
  return all;
}

/// Of the absorbed form those through the stacks are not stated: embed_q has its latent along its rows.
std::vector<Edge> LatentAttention::edges() const {
  std::vector<Edge> all;
  const auto of_norm = [&](const NormSpec& norm, const std::vector<const LinearSpec*>& consumers) {
    Edge edge;
    edge.producer = norm.path;
    edge.norm = norm;
    for (const auto* linear : consumers) edge.consumers.push_back(linear->path);
    edge.channels = edge.head_dim = norm.size;
    all.push_back(std::move(edge));
  };
  if (q_a_norm) of_norm(*q_a_norm, query_readers());
  if (!kv_b) return all;
  of_norm(kv_a_norm, {&*kv_b});
  Edge edge;
  edge.producer = kv_b->path;
  edge.rows = kv_b->parts[1];
  edge.consumers = {o.path};
  edge.channels = heads * value;
  edge.head_dim = value;
  all.push_back(std::move(edge));
  return all;
}

}  // namespace lquant::model
