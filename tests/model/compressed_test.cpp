// What attention over compressed entries is made of, beside the same by plain loops.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "model/ops/entry_choice.h"
#include "model/ops/exact.h"
#include "model/ops/groups.h"
#include "model/ops/round_trip.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

std::vector<float> values(const mx::array& x) {
  auto host = mx::contiguous(mx::astype(x, mx::float32));
  host.eval();
  return {host.data<float>(), host.data<float>() + host.size()};
}

mx::array row(const std::vector<std::int32_t>& numbers) { return mx::array(numbers.data(), {1, static_cast<int>(numbers.size())}, mx::int32); }

mx::array random(const mx::Shape& shape, int seed) { return mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed)); }

/// All numbers of a format with these bits of exponent and fraction, none below 0, in order; the last ones are no numbers.
std::vector<double> numbers_of(int exponent_bits, int fraction_bits, int leave_out) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  std::vector<double> all;
  for (int code = 0; code < (1 << (exponent_bits + fraction_bits)) - leave_out; ++code) {
    const int exponent = code >> fraction_bits, fraction = code & ((1 << fraction_bits) - 1);
    all.push_back(exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                                : std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits));
  }
  return all;
}

/// The nearest; of two equally near the one with the even code.
double nearest(const std::vector<double>& numbers, double x) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < numbers.size(); ++i) {
    const double now = std::abs(numbers[i] - std::abs(x)), least = std::abs(numbers[best] - std::abs(x));
    if (now < least || (now == least && i % 2 == 0)) best = i;
  }
  return std::copysign(numbers[best], x);
}

const auto kE4m3 = numbers_of(4, 3, 1), kE2m1 = numbers_of(2, 1, 0);

double power_above(double x) { return std::exp2(std::ceil(std::log2(x))); }

/// Blocks of numbers of several sizes, and of steps in whose middle others lie.
mx::array blocks(int size) {
  auto x = mx::multiply(random({1, 40, 4 * size}, 3), mx::exp(mx::multiply(mx::array(3.0f), random({1, 40, 1}, 4))));
  return mx::concatenate({x, mx::divide(mx::round(mx::multiply(random({1, 20, 4 * size}, 5), mx::array(16.0f))), mx::array(8.0f))}, 1);
}

void expect_rounded(const mx::array& got, const mx::array& x, int size, const std::vector<double>& numbers, double (*scale)(double largest)) {
  const auto before = values(x), after = values(got);
  for (std::size_t block = 0; block < before.size(); block += size) {
    double largest = 0;
    for (int i = 0; i < size; ++i) largest = std::max<double>(largest, std::abs(before[block + i]));
    const double unit = scale(largest);
    for (int i = 0; i < size; ++i) {
      // The quotient is rounded to f32, which is exact for powers of two; by another scale it may be moved across a border.
      const double quotient = std::min(numbers.back(), std::max(-numbers.back(), double(before[block + i] / static_cast<float>(unit))));
      ASSERT_EQ(after[block + i], static_cast<float>(nearest(numbers, quotient) * unit)) << before[block + i] << " by " << unit;
    }
  }
}

TEST(RoundTrip, NumbersAreTheNearestOfTheirFormat) {
  const auto x = blocks(32), y = blocks(16);
  expect_rounded(through_fp8(x), x, 32, kE4m3, [](double largest) { return power_above(std::max(largest, 1e-4) / 448); });
  expect_rounded(through_fp4(x), x, 32, kE2m1, [](double largest) { return power_above(std::max(largest, 6 * 0x1p-126) / 6); });
  expect_rounded(through_fp4_of_16(y), y, 16, kE2m1,
                 [](double largest) { return nearest(kE4m3, static_cast<float>(std::max(largest, 6 * 0x1p-9)) / 6.0f); });
}

TEST(RoundTrip, WhatFillsNoBlocksStaysAndGradientsPass) {
  const auto x = random({1, 3, 24}, 1), whole = random({1, 3, 32}, 2), weights = random({1, 3, 32}, 3);
  for (const auto& rounding : {through_fp8, through_fp4, through_fp4_of_16}) {
    EXPECT_TRUE(mx::array_equal(rounding(x), x).item<bool>());
    EXPECT_FALSE(mx::array_equal(rounding(whole), whole).item<bool>());
    const auto gradient = mx::grad([&](const mx::array& y) { return mx::sum(mx::multiply(weights, rounding(y))); })(whole);
    EXPECT_TRUE(mx::array_equal(gradient, weights).item<bool>());
  }
}

TEST(Exact, NumbersSurviveTheState) {
  const auto x = mx::concatenate({random({2, 5, 40}, 1), mx::multiply(random({2, 5, 40}, 2), mx::array(1e-5f))}, -1);
  for (const auto dtype : {mx::float32, mx::bfloat16})
    EXPECT_TRUE(mx::array_equal(out_of_columns(in_columns(x, kNumberColumns, dtype), 3), x).item<bool>());
  const auto whole = mx::reshape(mx::arange(0.0f, 65536.0f, mx::float32), {1, 64, 1024});
  for (const auto dtype : {mx::float32, mx::bfloat16})
    EXPECT_TRUE(mx::array_equal(out_of_columns(in_columns(whole, kSmallColumns, dtype), 2), whole).item<bool>());
  const auto gradient = mx::grad([](const mx::array& y) { return mx::sum(mx::square(out_of_columns(in_columns(y, 3, mx::float32), 3))); })(x);
  EXPECT_TRUE(mx::array_equal(gradient, mx::multiply(mx::array(2.0f), x)).item<bool>());
}

// Texts of 5, 2, 1 and 6 tokens in a row, by twos.
TEST(Groups, EntriesAreMadeOfTheTokensOfOneText) {
  const std::vector<std::int32_t> texts{7, 7, 7, 7, 7, 3, 3, 9, 4, 4, 4, 4, 4, 4};
  Context context;
  context.segments = row(texts);
  const Groups groups(context, 1, 14, 2);
  const auto x = random({1, 14, 3}, 1), logits = random({1, 14, 3}, 2);
  const auto pooled = groups.pooled(x, logits, 0);
  const auto made = values(pooled), from = values(x), weight = values(logits);
  std::vector<int> ends, first;
  for (int t = 0, place = 0; t < 14; ++t) {
    place = t > 0 && texts[t] == texts[t - 1] ? place + 1 : 0;
    if (place % 2 == 1) ends.push_back(t), first.push_back(t - place);
  }
  ASSERT_EQ(ends, (std::vector<int>{1, 3, 6, 9, 11, 13}));
  for (int t = 0; t < 14; ++t)
    for (int c = 0; c < 3; ++c) {
      double want = 0;
      if (std::count(ends.begin(), ends.end(), t)) {
        const double a = std::exp(weight[3 * t - 3 + c]), b = std::exp(weight[3 * t + c]);
        want = (a * from[3 * t - 3 + c] + b * from[3 * t + c]) / (a + b);
      }
      EXPECT_NEAR(made[3 * t + c], want, 1e-6) << t;
    }
  ASSERT_EQ(groups.count(), 7);  // as many as one text of 14 tokens would have
  const auto seen = values(groups.visible()), numbers = values(groups.numbers());
  for (int t = 0; t < 14; ++t)
    for (int g = 0; g < 7; ++g) {
      const bool sees = g < 6 && ends[g] <= t && texts[ends[g]] == texts[t];
      EXPECT_EQ(seen[7 * t + g], sees) << t << " " << g;
      if (g < 6) EXPECT_EQ(numbers[g], (ends[g] - first[g]) / 2);
    }
}

TEST(Groups, ACacheGoesOnWithTheGroupThatIsOpen) {
  const auto x = random({2, 14, 3}, 1), logits = random({2, 14, 3}, 2);
  const auto part = [](const mx::array& y, int from, int to) { return mx::slice(y, {0, from, 0}, {2, to, y.shape(2)}); };
  Context plain;
  const Groups whole(plain, 2, 14, 4);
  const auto rows = whole.pooled(x, logits, 0);
  Cache cache(1);
  Context context;
  context.cache = &cache;
  std::vector<mx::array> parts;
  for (const auto& [from, to] : {std::pair{0, 3}, {3, 4}, {4, 5}, {5, 13}, {13, 14}}) {
    const Groups groups(context, 2, to - from, 4);
    parts.push_back(groups.pooled(part(x, from, to), part(logits, from, to), 0));
    groups.keep(0, "entries", parts.back());
    EXPECT_EQ(groups.count(), to / 4);
    cache.advance(to - from);
  }
  EXPECT_TRUE(mx::allclose(mx::concatenate(parts, 1), rows, 1e-6, 1e-6).item<bool>());
  EXPECT_TRUE(mx::allclose(*cache.kept(0, "entries"), whole.collected(0, "entries", rows), 1e-6, 1e-6).item<bool>());
}

// Two texts in a row: what each query chooses, and what a later layer makes of the columns, is found again by sorting.
TEST(EntryChoice, TheLargestScoresOfTheCandidatesAreChosen) {
  const int length = 40, own[] = {25, 15};
  std::vector<std::int32_t> texts(length, 0);
  std::fill(texts.begin() + own[0], texts.end(), 1);
  Context context;
  context.segments = row(texts);
  const Groups groups(context, 1, length, 2);
  const int count = groups.count();
  const auto scores = random({1, length, count}, 1), others = random({1, length, count}, 2);
  EntryIndexer finder, narrowed;
  finder.top_k = narrowed.top_k = 3;
  finder.block = narrowed.block = 3;
  finder.top_blocks = 2;
  finder.gives = narrowed.gives = narrowed.narrowed = true;
  const auto first = choose_entries(finder, groups, scores, std::nullopt, mx::bfloat16);
  ASSERT_EQ(first.passed.size(), 2u);
  EXPECT_EQ(first.passed[0].shape(-1), choice_columns(3));
  EXPECT_EQ(first.passed[1].shape(-1), candidate_columns(2));
  const auto second = choose_entries(narrowed, groups, others, first.passed[1], mx::bfloat16);
  const auto a = values(scores), b = values(others), numbers = values(groups.numbers()), visible = values(groups.visible());
  const auto got = values(first.mask), then = values(second.mask), again = values(entries_chosen(groups, second.passed[0]));
  const auto best = [&](const std::vector<float>& of, int t, const std::vector<int>& among, std::size_t k) {
    auto order = among;
    std::sort(order.begin(), order.end(), [&](int l, int r) { return of[t * count + l] > of[t * count + r]; });
    order.resize(std::min(k, order.size()));
    return std::set<int>(order.begin(), order.end());
  };
  int left_out = 0;
  for (int t = 0; t < length; ++t) {
    std::vector<int> seen, candidates, blocks;
    for (int g = 0; g < count; ++g)
      if (visible[t * count + g]) seen.push_back(g);
    std::map<int, float> of_block;
    for (const int g : seen) {
      const auto [at, is_new] = of_block.emplace(int(numbers[g]) / 3, a[t * count + g]);
      at->second = std::max(at->second, a[t * count + g]);
    }
    if (!seen.empty()) of_block.rbegin()->second = std::numeric_limits<float>::infinity();
    for (const auto& [block, score] : of_block) blocks.push_back(block);
    std::sort(blocks.begin(), blocks.end(), [&](int l, int r) { return of_block[l] > of_block[r]; });
    blocks.resize(std::min<std::size_t>(2, blocks.size()));
    for (const int g : seen)
      if (std::count(blocks.begin(), blocks.end(), int(numbers[g]) / 3)) candidates.push_back(g);
    left_out += seen.size() > candidates.size();
    const auto chosen = best(a, t, seen, 3), narrowly = best(b, t, candidates, 3);
    for (int g = 0; g < count; ++g) {
      EXPECT_EQ(got[t * count + g], chosen.count(g)) << t << " " << g;
      EXPECT_EQ(then[t * count + g], narrowly.count(g)) << t << " " << g;
      EXPECT_EQ(again[t * count + g], narrowly.count(g)) << t << " " << g;
    }
  }
  EXPECT_GT(left_out, 10);
}

}  // namespace
}  // namespace lquant::model
