// In rows of several texts a block begins at another place for each text, so that keys cannot be cut into blocks by their place in the row: there
// each block's score is found among all keys. Elsewhere blocks are neighbours, and one reduction serves all.
#include "model/ops/block_indexer.h"

#include <mlx/mlx.h>

#include "kernels/linear.h"
#include "model/norm.h"
#include "model/ops/attention.h"
#include "model/ops/parts.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

/// x [B, T, heads · dim] → its heads, normed and turned: [B, heads, T, dim].
mx::array made_ready(const Scope& scope, const BlockIndexer& indexer, const NormSpec& norm, const mx::array& x) {
  const auto heads = normed(scope.tensors, norm, mx::reshape(x, {x.shape(0), x.shape(1), -1, indexer.dim}));
  return mx::swapaxes(turned(scope, indexer.rope, heads), 1, 2);
}

/// scores [B, heads, T, S] by key's place in the row → by its place in the query's own text: [B, heads, T, count]. What stands behind the query has
/// no meaning.
mx::array by_place_in_text(const Context& context, const mx::array& scores, int count) {
  auto shape = scores.shape();
  const int keys = shape[3];
  shape[3] = count;
  if (context.segments) {
    const auto at = mx::clip(places_in_row(context, shape[0], shape[2], count), mx::array(0, mx::int32), mx::array(keys - 1, mx::int32));
    return mx::take_along_axis(scores, mx::broadcast_to(mx::expand_dims(at, 1), shape), 3);
  }
  if (count == keys) return scores;
  shape[3] = count - keys;
  return mx::concatenate({scores, mx::zeros(shape, scores.dtype())}, 3);
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
  const auto keys = remembered(scope, k.path, made_ready(scope, *this, k_norm, kernels::linear(fixed, scope.weight(k))), 2);
  if (count <= top_k) return std::nullopt;
  const auto queries = made_ready(scope, *this, q_norm, kernels::linear(fixed, scope.weight(q)));
  const auto f32 = [](const mx::array& x) { return mx::astype(mx::stop_gradient(x), mx::float32); };
  const auto scores = mx::matmul(f32(queries), mx::swapaxes(f32(keys), 2, 3));
  const mx::array size(block, mx::int32);
  const bool in_row = !context.segments;
  const auto own = in_row ? mx::reshape(mx::arange(args.offset, args.offset + length, mx::int32), {1, length}) : positions(context, batch, length);
  const auto seen = mx::less_equal(mx::arange(count * block, mx::int32), mx::expand_dims(own, {1, 3}));
  const auto in_text = mx::where(seen, by_place_in_text(context, scores, count * block), never());
  auto of_blocks = mx::max(mx::unflatten(in_text, 3, {count, block}), -1);
  if (local > 0) {
    const auto here = mx::floor_divide(mx::expand_dims(own, {1, 3}), size), numbers = mx::arange(count, mx::int32);
    const auto near = mx::logical_and(mx::less_equal(numbers, here), mx::greater(numbers, mx::subtract(here, mx::array(local, mx::int32))));
    of_blocks = mx::where(near, mx::negative(never()), of_blocks);
  }
  auto stop = of_blocks.shape();
  stop[3] = top_k;
  const auto chosen = mx::slice(mx::argpartition(mx::negative(of_blocks), top_k - 1, -1), {0, 0, 0, 0}, stop);
  const auto kept = mx::put_along_axis(mx::zeros(of_blocks.shape(), mx::bool_), chosen, mx::array(true), -1);
  const auto places = in_row ? mx::reshape(mx::arange(keys.shape(2), mx::int32), {1, 1, 1, -1}) : mx::expand_dims(own, {1, 2});
  auto mask = mx::take_along_axis(kept, mx::broadcast_to(mx::floor_divide(places, size), scores.shape()), -1);
  const auto visible = kernels::visible_keys(length, keys.shape(2), args, context.segments);
  if (visible) mask = mx::logical_and(mask, *visible);  // a kept block's later keys, and those of other texts
  return mx::repeat(mask, query_heads / heads, 1);
}

}  // namespace lquant::model
