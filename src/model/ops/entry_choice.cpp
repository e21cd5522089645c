// Choices are numbers of entries, and of blocks of them, in their text: so they mean the same to later layers, wherever a row has its texts. −1
// stands for none.
#include "model/ops/entry_choice.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "model/ops/exact.h"
#include "model/ops/parts.h"

namespace lquant::model {
namespace {

mx::array whole(int value) { return mx::array(value, mx::int32); }
/// Numbers of entries [B or 1, entries] beside scores [B, T, entries].
mx::array beside(const mx::array& numbers, const mx::array& scores) { return mx::broadcast_to(mx::expand_dims(numbers, 1), scores.shape()); }

/// Places of the k largest.
mx::array largest(const mx::array& scores, int k) {
  auto stop = scores.shape();
  stop.back() = k;
  return mx::slice(mx::argpartition(mx::negative(scores), k - 1, -1), {0, 0, 0}, stop);
}

/// Numbers int32 [B, T, n], −1 for none, as columns for `count` of them.
mx::array passed(const mx::array& numbers, int count, int columns, mx::Dtype dtype) {
  const auto all = mx::pad(numbers, {{0, 0}, {0, 0}, {0, count - numbers.shape(-1)}}, whole(-1));
  return in_columns(mx::astype(all, mx::float32), columns, dtype);
}

/// bool [B, T, count]: which numbers below `count` are among those of these columns.
mx::array among(const mx::array& given, int columns, int count) {
  const auto numbers = mx::astype(out_of_columns(mx::stop_gradient(given), columns), mx::int32);
  auto shape = numbers.shape();
  shape.back() = count + 1;
  const auto all =
      mx::put_along_axis(mx::zeros(shape, mx::bool_), mx::where(mx::less(numbers, whole(0)), whole(count), numbers), mx::array(true), -1);
  shape.back() = count;
  return mx::slice(all, {0, 0, 0}, shape);
}

/// Of each entry that begins a block the largest score in the block, of all others −∞.
mx::array block_scores(const mx::array& scores, const mx::array& numbers, int size) {
  const int count = scores.shape(-1);
  auto best = scores;
  for (int j = 1; j < std::min(size, count); ++j) {
    const auto moved = [&](const mx::array& x, const mx::array& filling) {
      auto start = mx::Shape(x.ndim(), 0);
      start.back() = j;
      auto pads = std::vector<std::pair<int, int>>(x.ndim(), {0, 0});
      pads.back() = {0, j};
      return mx::pad(mx::slice(x, start, x.shape()), pads, filling);
    };
    const auto same = mx::equal(moved(numbers, whole(-1)), mx::add(numbers, whole(j)));
    best = mx::maximum(best, mx::where(mx::expand_dims(same, 1), moved(scores, never()), never()));
  }
  const auto begins = mx::equal(mx::remainder(numbers, whole(size)), whole(0));
  return mx::where(mx::expand_dims(begins, 1), best, never());
}

/// The blocks that later indexers choose among.
mx::array candidates_of(const EntryIndexer& indexer, const Groups& groups, const mx::array& scores, mx::Dtype dtype) {
  const auto numbers = groups.numbers(), blocks = beside(mx::floor_divide(numbers, whole(indexer.block)), scores);
  auto best = block_scores(scores, numbers, indexer.block);
  // The last block always: it is but partly full, so a full one may well have a higher score.
  const auto last = mx::expand_dims(mx::floor_divide(mx::subtract(groups.ended(), whole(1)), whole(indexer.block)), 2);
  best = mx::where(mx::logical_and(mx::equal(blocks, last), mx::greater(best, never())), mx::negative(never()), best);
  const auto chosen = largest(best, std::min(indexer.top_blocks, scores.shape(-1)));
  const auto reached = mx::greater(mx::take_along_axis(best, chosen, -1), never());
  return passed(mx::where(reached, mx::take_along_axis(blocks, chosen, -1), whole(-1)), indexer.top_blocks, kSmallColumns, dtype);
}

/// What holds of numbers below `all`'s last axis, for entries of these numbers.
mx::array of_entries(const mx::array& all, const mx::array& numbers, int entries) {
  auto shape = all.shape();
  shape.back() = entries;
  return mx::take_along_axis(all, mx::broadcast_to(mx::expand_dims(mx::maximum(numbers, whole(0)), 1), shape), -1);
}

}  // namespace

int choice_columns(int top_k) { return kNumberColumns * top_k; }
int candidate_columns(int top_blocks) { return kSmallColumns * top_blocks; }

mx::array entry_scores(const EntryIndexer& indexer, const mx::array& queries, const mx::array& keys, const mx::array& weights) {
  const auto factor = [](int n) { return mx::array(static_cast<float>(1 / std::sqrt(static_cast<double>(n)))); };
  const auto products = mx::matmul(f32(queries), mx::swapaxes(mx::expand_dims(f32(keys), 1), -1, -2));
  const auto of_heads = mx::multiply(mx::maximum(products, mx::array(0.0f)), factor(indexer.dim));
  return mx::sum(mx::multiply(of_heads, mx::expand_dims(mx::multiply(f32(weights), factor(indexer.heads)), -1)), 2);
}

EntryChoice choose_entries(const EntryIndexer& indexer, const Groups& groups, const mx::array& given, const std::optional<mx::array>& candidates,
                           mx::Dtype dtype) {
  const int count = groups.count();
  const auto visible = groups.visible();
  auto scores = mx::where(visible, mx::stop_gradient(given), never());
  std::vector<mx::array> found;
  if (indexer.top_blocks > 0) {
    found.push_back(candidates_of(indexer, groups, scores, dtype));
  } else if (candidates) {
    const int blocks = (count + indexer.block - 1) / indexer.block;
    const auto open = among(*candidates, kSmallColumns, blocks);
    scores = mx::where(of_entries(open, mx::floor_divide(groups.numbers(), whole(indexer.block)), count), scores, never());
  }
  const auto chosen = largest(scores, std::min(indexer.top_k, count)), seen = mx::take_along_axis(visible, chosen, -1);
  EntryChoice choice{mx::put_along_axis(mx::zeros(scores.shape(), mx::bool_), chosen, seen, -1), {}};
  if (!indexer.gives) return choice;
  const auto numbers = mx::where(seen, mx::take_along_axis(beside(groups.numbers(), scores), chosen, -1), whole(-1));
  choice.passed = {passed(numbers, indexer.top_k, kNumberColumns, dtype)};
  choice.passed.insert(choice.passed.end(), found.begin(), found.end());
  return choice;
}

mx::array entries_chosen(const Groups& groups, const mx::array& choice) {
  return mx::logical_and(of_entries(among(choice, kNumberColumns, groups.count()), groups.numbers(), groups.count()), groups.visible());
}

}  // namespace lquant::model
