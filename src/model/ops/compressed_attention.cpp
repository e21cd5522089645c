// The window's keys and the entries share one softmax, so a layer that reads entries has all of them behind one mask; one that reads none has the
// kernel.
#include "model/ops/compressed_attention.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/rope.h"
#include "model/norm.h"
#include "model/ops/attention.h"
#include "model/ops/parts.h"
#include "model/ops/round_trip.h"
#include "model/segments.h"
#include "model/weights.h"

namespace lquant::model {
namespace {

// Names in a cache, beside the block.
constexpr const char *kEntries = "entries", *kKeys = "keys", *kWindow = "window";

mx::array in_heads(const mx::array& x, int heads) { return mx::reshape(x, {x.shape(0), x.shape(1), heads, -1}); }
mx::array side_by_side(const mx::array& x) { return mx::reshape(x, {x.shape(0), x.shape(1), -1}); }

mx::array wide_product(const Scope& scope, const LinearSpec& linear, const mx::array& x) {
  return kernels::linear(f32(x), linear_weight(scope.tensors, scope.formats, linear.path, mx::float32));
}

mx::array last_tokens(const mx::array& x, int count) { return mx::slice(x, {0, std::max(0, x.shape(1) - count), 0}, x.shape()); }

}  // namespace

std::vector<const LinearSpec*> CompressedAttention::first_readers() const {
  std::vector<const LinearSpec*> all{&q_a, &kv};
  if (compressor) all.push_back(&compressor->kv);
  if (compressor && compressor->gate) all.push_back(&*compressor->gate);
  if (indexer) all.push_back(&indexer->weights);
  return all;
}

/// Those of the queries' latent.
std::vector<const LinearSpec*> CompressedAttention::latent_readers() const {
  std::vector<const LinearSpec*> all{&q_b};
  if (indexer) all.push_back(&indexer->q_b);
  return all;
}

void CompressedAttention::contents(int op, int first_stage, Contents& all) const {
  for (const auto* linear : first_readers()) all.readings.push_back({linear, op, first_stage});
  for (const auto* linear : latent_readers()) all.readings.push_back({linear, op, first_stage + 1});
  if (indexer && indexer->k) all.readings.push_back({&*indexer->k, op, first_stage + 1, 1});
  all.readings.push_back({&o_a, op, first_stage + 2});
  all.readings.push_back({&o_b, op, first_stage + 3});
  for (const auto* norm : {&q_a_norm, &kv_norm}) all.norms.push_back(norm);
  if (compressor) all.norms.push_back(&compressor->norm);
  if (indexer && indexer->k) all.norms.push_back(&*indexer->k_norm);
  all.parameters.push_back(&sinks);
}

Flow CompressedAttention::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  if (scope.context.branches) throw std::invalid_argument("[model] endings cannot go on from entries; give each text whole");
  for (const auto* linear : first_readers()) scope.observe(*linear, normed);
  return {{normed}, {}};
}

/// The last features of x [B, T, heads, D] turned by the tokens' own places, or by these; `back`: the other way round.
mx::array CompressedAttention::turned(const Scope& scope, const mx::array& x, const std::optional<mx::array>& places, bool back) const {
  const auto& context = scope.context;
  auto own = places;
  // What is rounded behind it must not depend on where in a row a text stands.
  if (!own && context.segments) own = positions(context, x.shape(0), x.shape(1));
  auto inv_freq = inverse_frequencies(rope, 0);
  if (back) inv_freq = mx::negative(inv_freq);
  auto start = mx::Shape(4, 0), stop = x.shape();
  start[3] = stop[3] - rotated;
  const auto tail = f32(mx::slice(x, start, stop));
  stop[3] = start[3], start[3] = 0;
  const int offset = context.cache ? context.cache->length() : context.offset;
  const auto made = mx::astype(kernels::rope(tail, inv_freq, offset, 1, rope.interleaved, own), x.dtype());
  return stop[3] == 0 ? made : mx::concatenate({mx::slice(x, start, stop), made}, 3);
}

mx::array CompressedAttention::row_turned(const Scope& scope, const mx::array& x, const std::optional<mx::array>& places) const {
  return side_by_side(turned(scope, in_heads(x, 1), places));
}

mx::array CompressedAttention::as_kept(mx::array (*rounding)(const mx::array&), const mx::array& x) const { return rounds ? rounding(x) : x; }

/// Of what entries are made before they are turned, as rows by token.
mx::array CompressedAttention::latent(const Scope& scope, const Groups& own, const mx::array& x) const {
  auto values = wide_product(scope, compressor->kv, x);
  if (compressor->gate) values = own.pooled(values, wide_product(scope, *compressor->gate, x), scope.block);
  const auto rounded = f32(mx::astype(values, scope.dtype));
  return mx::astype(normed(scope.tensors, compressor->norm, rounded), scope.dtype);
}

/// Inputs: the queries' latent, of a layer that makes entries that of these; kept: the window's new keys, of an indexer its weights.
Flow CompressedAttention::with_latents(const Scope& scope, const Flow& at) const {
  const auto& x = at.inputs[0];
  const auto made = kernels::linears(x, {scope.weight(q_a), scope.weight(kv)});
  Flow next{{normed(scope.tensors, q_a_norm, made[0])}, {as_kept(through_fp8, row_turned(scope, normed(scope.tensors, kv_norm, made[1])))}};
  for (const auto* linear : latent_readers()) scope.observe(*linear, next.inputs[0]);
  if (indexer) next.kept.push_back(kernels::linear(mx::stop_gradient(x), scope.weight(indexer->weights)));
  if (!compressor) return next;
  const Groups own(scope.context, x.shape(0), x.shape(1), ratio);
  next.inputs.push_back(latent(scope, own, x));
  if (indexer) scope.observe(*indexer->k, next.inputs[1]);
  return next;
}

/// Which entries each query reads, bool [B, T, entries].
mx::array CompressedAttention::seen(const Scope& scope, const Groups& own, const Flow& at, const mx::array& keys,
                                    std::vector<mx::array>& given) const {
  if (!indexer) return chosen ? entries_chosen(own, scope.columns(columns.choice)) : own.visible();
  const auto product = kernels::linear(mx::stop_gradient(at.inputs[0]), scope.weight(indexer->q_b));
  const auto queries = as_kept(through_fp4, turned(scope, in_heads(product, indexer->heads)));
  const auto scores = entry_scores(*indexer, queries, own.collected(keys_of, kKeys, keys), at.kept[1]);
  const auto candidates = indexer->narrowed ? std::optional(scope.columns(columns.candidates)) : std::nullopt;
  auto choice = choose_entries(*indexer, own, scores, candidates, scope.dtype);
  given.insert(given.end(), choice.passed.begin(), choice.passed.end());
  return choice.mask;
}

/// What is read beside the window; `given` is what later layers get.
std::optional<CompressedAttention::Far> CompressedAttention::far(const Scope& scope, const Flow& at, std::vector<mx::array>& given) const {
  if (ratio == 0) return std::nullopt;
  const Groups own(scope.context, at.inputs[0].shape(0), at.inputs[0].shape(1), ratio);
  if (compressor) {
    const auto& latent = at.inputs[1];
    given.push_back(as_kept(through_fp4_of_16, row_turned(scope, latent, own.places())));
    own.keep(scope.block, kEntries, given.back());
    if (indexer) {
      const auto key = normed(scope.tensors, *indexer->k_norm, kernels::linear(mx::stop_gradient(latent), scope.weight(*indexer->k)));
      given.push_back(as_kept(through_fp4, row_turned(scope, key, own.places())));
      own.keep(scope.block, kKeys, given.back());
    }
  }
  if (entries_of < 0 || own.count() == 0) return std::nullopt;
  const auto rows = compressor ? given[0] : scope.columns(columns.entries);
  const auto keys = compressor && indexer ? given[1] : indexer ? scope.columns(columns.keys) : rows;
  auto mask = seen(scope, own, at, keys, given);
  return Far{own.collected(entries_of, kEntries, rows), std::move(mask)};
}

/// q [B, T, heads, head_dim]; `fresh` are this call's keys, which are values too.
mx::array CompressedAttention::attended(const Scope& scope, const mx::array& q, const mx::array& fresh, const std::optional<Far>& far) const {
  const auto& context = scope.context;
  auto args = attention_args(context, static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim))), window);
  auto near = fresh;
  if (context.cache && window > 1) {
    if (const auto before = context.cache->kept(scope.block, kWindow)) near = mx::concatenate({*before, fresh}, 1);
    context.cache->keep(scope.block, kWindow, last_tokens(near, window - 1));
  }
  const int length = fresh.shape(1), keys = near.shape(1);
  args.offset = keys - length;
  if (!far) return kernels::attention(q, in_heads(near, 1), in_heads(near, 1), args, context.segments, scope.tensor(sinks.path));
  const mx::Shape of_keys{q.shape(0), 1, length, keys};
  const auto visible = kernels::visible_keys(length, keys, args, context.segments);
  const auto mask = mx::concatenate({mx::broadcast_to(visible.value_or(mx::array(true)), of_keys), mx::expand_dims(far->seen, 1)}, 3);
  const auto all = mx::expand_dims(mx::concatenate({f32(near), f32(far->entries)}, 1), 1);
  // In f32, for MLX rounds scores to the dtype of wide heads.
  const auto out = mx::fast::scaled_dot_product_attention(f32(mx::swapaxes(q, 1, 2)), all, all, args.scale, "", mask, f32(scope.tensor(sinks.path)));
  return mx::astype(mx::swapaxes(out, 1, 2), q.dtype());
}

Flow CompressedAttention::with_result(const Scope& scope, const Flow& at) const {
  Flow next;
  const auto beside = far(scope, at, next.kept);
  const auto q = turned(scope, in_heads(kernels::linear(at.inputs[0], scope.weight(q_b)), heads));
  const auto result = turned(scope, attended(scope, q, at.kept[0], beside), std::nullopt, /*back=*/true);
  next.inputs = {in_heads(side_by_side(result), groups)};
  scope.observe_slices(o_a, next.inputs[0]);
  return next;
}

Flow CompressedAttention::advance(const Scope& scope, int stage, const Flow& at) const {
  if (stage == 1) return with_latents(scope, at);
  if (stage == 2) return with_result(scope, at);
  Flow next{{side_by_side(through_each(at.inputs[0], scope.weight(o_a).weight))}, at.kept};
  scope.observe(o_b, next.inputs[0]);
  return next;
}

mx::array CompressedAttention::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(o_b), residual);
}

std::vector<std::string> CompressedAttention::readers() const {
  std::vector<std::string> all;
  for (const auto* linear : first_readers()) all.push_back(linear->path);
  return all;
}

/// Keys are values too, and entries both and the indexer's: nothing between them bears a scale.
std::vector<Edge> CompressedAttention::edges() const {
  Edge edge;
  edge.producer = q_a_norm.path;
  edge.norm = q_a_norm;
  for (const auto* linear : latent_readers()) edge.consumers.push_back(linear->path);
  edge.channels = edge.head_dim = q_a_norm.size;
  return {edge};
}

}  // namespace lquant::model
