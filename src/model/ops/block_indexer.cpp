// In rows of several texts a block begins at another place for each text, so that keys cannot be cut into blocks by their place in the row: there
// each block's score is found among all keys. Elsewhere blocks are neighbours, and one reduction serves all.
#include "model/ops/block_indexer.h"

#include <mlx/mlx.h>

#include <limits>

#include "kernels/linear.h"
#include "kernels/rope.h"
#include "model/norm.h"
#include "model/ops/attention.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

mx::array never() { return mx::array(-std::numeric_limits<float>::infinity()); }

/// x [B, T, heads · dim] → its heads, normed and turned: [B, heads, T, dim].
mx::array made_ready(const Scope& scope, const BlockIndexer& indexer, const NormSpec& norm, const mx::array& x) {
  const auto& context = scope.context;
  const auto heads = normed(scope.tensors, norm, mx::reshape(x, {x.shape(0), x.shape(1), -1, indexer.dim}));
  const auto inv_freq = inverse_frequencies(indexer.rope, longest_text(context, x.shape(1)));
  const auto turned = kernels::rope(heads, inv_freq, context.cache ? context.cache->length() : context.offset, indexer.rope.magnitude,
                                    indexer.rope.interleaved, context.branches ? std::optional(context.branches->positions) : std::nullopt);
  return mx::swapaxes(turned, 1, 2);
}

/// x [B, 1, T, dim] of this call behind what the cache holds, which holds that from now on.
mx::array remembered(const Scope& scope, const std::string& name, const mx::array& x) {
  auto* cache = scope.context.cache;
  if (!cache) return x;
  const auto before = cache->kept(scope.block, name);
  const auto all = before ? mx::concatenate({*before, x}, 2) : x;
  cache->keep(scope.block, name, all);
  return all;
}

/// The largest score of each block: [B, heads, T, S] → [B, heads, T, count]. `blocks` int32 [B, 1, 1, S]: of each key its block, where they are no
/// neighbours.
mx::array largest_of_blocks(const mx::array& scores, int block, int count, const std::optional<mx::array>& blocks) {
  if (!blocks) {
    auto missing = scores.shape();
    missing[3] = count * block - scores.shape(3);
    const auto whole = missing[3] == 0 ? scores : mx::concatenate({scores, mx::broadcast_to(never(), missing)}, 3);
    return mx::max(mx::unflatten(whole, 3, {count, block}), -1);
  }
  std::vector<mx::array> all;
  for (int b = 0; b < count; ++b) all.push_back(mx::max(mx::where(mx::equal(*blocks, mx::array(b, mx::int32)), scores, never()), -1, true));
  return mx::concatenate(all, -1);
}

}  // namespace

std::optional<mx::array> BlockIndexer::chosen_keys(const Scope& scope, const mx::array& h, int query_heads,
                                                   const kernels::AttentionArgs& args) const {
  const auto& context = scope.context;
  const auto fixed = mx::stop_gradient(h);
  const int batch = h.shape(0), length = h.shape(1);
  const int longest = context.branches ? context.branches->longest : args.offset + length;
  const int count = (longest + block - 1) / block;
  // Later calls need the keys of this one, whether it chooses or not.
  if (!context.cache && count <= top_k) return std::nullopt;
  const auto keys = remembered(scope, k.path, made_ready(scope, *this, k_norm, kernels::linear(fixed, scope.weight(k))));
  if (count <= top_k) return std::nullopt;
  const auto queries = made_ready(scope, *this, q_norm, kernels::linear(fixed, scope.weight(q)));
  const int all_keys = keys.shape(2);

  const auto f32 = [](const mx::array& x) { return mx::astype(mx::stop_gradient(x), mx::float32); };
  auto scores = mx::matmul(f32(queries), mx::swapaxes(f32(keys), 2, 3));
  const auto visible = kernels::visible_keys(length, all_keys, args, context.segments);
  if (visible) scores = mx::where(*visible, scores, never());

  const mx::array size(block, mx::int32);
  const auto in_blocks = [&](const mx::array& places) { return mx::floor_divide(places, size); };
  const bool in_row = !context.segments;
  const auto own = in_row ? mx::reshape(mx::arange(args.offset, args.offset + length, mx::int32), {1, length}) : positions(context, batch, length);
  const auto of_keys = in_blocks(in_row ? mx::reshape(mx::arange(all_keys, mx::int32), {1, 1, 1, all_keys}) : mx::expand_dims(own, {1, 2}));
  auto of_blocks = largest_of_blocks(scores, block, count, in_row ? std::nullopt : std::optional(of_keys));
  if (local > 0) {
    const auto here = in_blocks(mx::expand_dims(own, {1, 3})), numbers = mx::arange(count, mx::int32);
    const auto near = mx::logical_and(mx::less_equal(numbers, here), mx::greater(numbers, mx::subtract(here, mx::array(local, mx::int32))));
    of_blocks = mx::where(near, mx::negative(never()), of_blocks);
  }
  auto stop = of_blocks.shape();
  stop[3] = top_k;
  const auto chosen = mx::slice(mx::argpartition(mx::negative(of_blocks), top_k - 1, -1), {0, 0, 0, 0}, stop);
  const auto kept = mx::put_along_axis(mx::zeros(of_blocks.shape(), mx::bool_), chosen, mx::array(true), -1);
  auto mask = mx::take_along_axis(kept, mx::broadcast_to(of_keys, scores.shape()), -1);
  if (visible) mask = mx::logical_and(mask, *visible);  // a kept block's later keys, and those of other texts
  return mx::repeat(mask, query_heads / heads, 1);
}

}  // namespace lquant::model
