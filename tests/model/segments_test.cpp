#include "model/segments.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

namespace lquant::model {
namespace {

namespace mx = mlx::core;

mx::array row(const std::vector<std::int32_t>& values) { return mx::array(values.data(), {1, static_cast<int>(values.size())}, mx::int32); }

std::vector<std::int32_t> values(const mx::array& x) {
  auto host = mx::contiguous(mx::astype(x, mx::int32));
  host.eval();
  return {host.data<std::int32_t>(), host.data<std::int32_t>() + host.size()};
}

/// Tokens numbered from 1, as the one feature of their embeddings [1, T, 1].
mx::array tokens(int from, int to) { return mx::expand_dims(mx::arange(float(from), float(to + 1), mx::float32), {0, 2}); }

using Row = std::vector<std::int32_t>;

TEST(Segments, PositionsCountFromTheBeginningOfATextAndBehindACache) {
  Context context;
  EXPECT_EQ(values(positions(context, 2, 3)), (Row{0, 1, 2, 0, 1, 2}));
  context.offset = 5;
  EXPECT_EQ(values(positions(context, 1, 2)), (Row{5, 6}));
  Cache cache(1);
  cache.advance(7);
  context.cache = &cache;
  EXPECT_EQ(values(positions(context, 1, 2)), (Row{7, 8}));
  Context packed;
  packed.segments = row({4, 4, 4, 1, 2, 2});
  EXPECT_EQ(values(positions(packed, 1, 6)), (Row{0, 1, 2, 0, 0, 1}));
}

TEST(Segments, PrecedingTokensAreThoseOfTheSameText) {
  Context context;
  const auto moved = preceding(context, 0, "x", tokens(1, 4), 2);
  ASSERT_EQ(moved.size(), 3u);
  EXPECT_EQ(values(moved[0]), (Row{1, 2, 3, 4}));
  EXPECT_EQ(values(moved[1]), (Row{0, 1, 2, 3}));
  EXPECT_EQ(values(moved[2]), (Row{0, 0, 1, 2}));
  EXPECT_EQ(values(preceding(context, 0, "x", tokens(1, 1), 2)[2]), (Row{0}));  // fewer tokens than taps
  context.segments = row({3, 3, 3, 5});
  const auto packed = preceding(context, 0, "x", tokens(1, 4), 2);
  EXPECT_EQ(values(packed[1]), (Row{0, 1, 2, 0}));
  EXPECT_EQ(values(packed[2]), (Row{0, 0, 1, 0}));
}

// A text of two tokens with endings of two and one, a text of one with an ending, an ending that has no text before it.
TEST(Segments, EndingsReachBackIntoTheirText) {
  Context context;
  context.segments = row({256, 256, 257, 257, 258, 512, 513, 513, 769, 769});
  context.branches = Branches{row({0, 1, 2, 3, 2, 0, 1, 2, 0, 1}), 4};
  const auto moved = preceding(context, 0, "x", tokens(1, 10), 3);
  EXPECT_EQ(values(moved[1]), (Row{0, 1, 2, 3, 2, 0, 6, 7, 0, 9}));
  EXPECT_EQ(values(moved[2]), (Row{0, 0, 1, 2, 1, 0, 0, 6, 0, 0}));
  EXPECT_EQ(values(moved[3]), (Row{0, 0, 0, 1, 0, 0, 0, 0, 0, 0}));
}

// The same row, and one of two texts: up to each token itself.
TEST(Segments, PlacesInARowAreThoseOfATokensOwnText) {
  const auto until_itself = [](const Context& context) {
    const int length = context.segments->shape(1);
    const auto own = mx::expand_dims(positions(context, 1, length), 2);
    return values(mx::where(mx::less_equal(mx::arange(4, mx::int32), own), places_in_row(context, 1, length, 4), mx::array(-1, mx::int32)));
  };
  Context context;
  context.segments = row({7, 7, 2});
  EXPECT_EQ(until_itself(context), (Row{0, -1, -1, -1, 0, 1, -1, -1, 2, -1, -1, -1}));
  context.segments = row({256, 256, 257, 257, 258, 512, 513, 513, 769, 769});
  context.branches = Branches{row({0, 1, 2, 3, 2, 0, 1, 2, 0, 1}), 4};
  EXPECT_EQ(until_itself(context), (Row{0, -1, -1, -1, 0, 1, -1, -1, 0, 1, 2, -1, 0, 1,  2,  3,  0, 1, 4,  -1,
                                        5, -1, -1, -1, 5, 6, -1, -1, 5, 6, 7, -1, 8, -1, -1, -1, 8, 9, -1, -1}));
}

TEST(Segments, ACacheKeepsTheLastTokensByName) {
  Cache cache(2);
  Context context;
  context.cache = &cache;
  EXPECT_EQ(values(preceding(context, 1, "x", tokens(1, 1), 2)[1]), (Row{0}));
  const auto second = preceding(context, 1, "x", tokens(2, 4), 2);
  EXPECT_EQ(values(second[1]), (Row{1, 2, 3}));
  EXPECT_EQ(values(second[2]), (Row{0, 1, 2}));
  EXPECT_EQ(values(preceding(context, 1, "y", tokens(5, 5), 2)[1]), (Row{0}));
  EXPECT_EQ(values(preceding(context, 0, "x", tokens(5, 5), 2)[1]), (Row{0}));
  EXPECT_EQ(values(preceding(context, 1, "x", tokens(5, 5), 2)[2]), (Row{3}));
}

TEST(Segments, WhatACacheKeepsIsSelectedByRows) {
  Cache cache(1);
  cache.keep(0, "state", mx::array({1.0f, 2.0f, 3.0f}, {3, 1}));
  EXPECT_EQ(cache.arrays().size(), 1u);
  cache.select(mx::array({2, 0}, mx::int32));
  EXPECT_EQ(values(*cache.kept(0, "state")), (Row{3, 1}));
  EXPECT_FALSE(cache.kept(0, "other"));
}

}  // namespace
}  // namespace lquant::model
