#include "plan/allocate.h"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>

#include "base/error.h"

namespace lquant::plan {
namespace {

/// Items as quantized matrices give them: sizes are multiples of `unit`, losses mostly fall with size and now and then do not.
std::vector<Item> random_items(std::mt19937& random, int items, int choices, std::int64_t unit) {
  std::uniform_int_distribution<int> size(1, 12);
  std::uniform_real_distribution<double> loss(0, 1);
  std::vector<Item> made;
  for (int i = 0; i < items; ++i) {
    Item item{"t" + std::to_string(i), {}};
    for (int c = 0; c < choices; ++c) {
      const int units = size(random);
      item.choices.push_back({units * unit, (loss(random) - 0.05) / units});
    }
    made.push_back(item);
  }
  return made;
}

Allocation of(const std::vector<Item>& items, const std::vector<int>& chosen) {
  Allocation a{chosen};
  for (std::size_t i = 0; i < items.size(); ++i) a.bytes += items[i].choices[chosen[i]].bytes, a.loss += items[i].choices[chosen[i]].loss;
  return a;
}

/// Calls visit with every combination of choices.
template <class Visit>
void for_all(const std::vector<Item>& items, const Visit& visit) {
  std::vector<int> chosen(items.size(), 0);
  while (true) {
    visit(of(items, chosen));
    std::size_t i = 0;
    while (i < items.size() && ++chosen[i] == static_cast<int>(items[i].choices.size())) chosen[i++] = 0;
    if (i == items.size()) return;
  }
}

/// The least loss within the budget, by trying everything; infinite when nothing fits.
double brute_force(const std::vector<Item>& items, std::int64_t budget) {
  double least = INFINITY;
  for_all(items, [&](const Allocation& a) {
    if (a.bytes <= budget) least = std::min(least, a.loss);
  });
  return least;
}

// Losses are sums of at most 6 numbers below 1 in another order than the table's: off by less than 6 rounding errors of 2^-53 each.
constexpr double kRounding = 6 * 1.2e-16;

void expect_consistent(const Allocator& allocator, const Allocation& a) {
  const auto again = of(allocator.items(), a.chosen);
  EXPECT_EQ(a.bytes, again.bytes);
  EXPECT_NEAR(a.loss, again.loss, kRounding);
}

TEST(Allocator, EqualsBruteForceForEveryBudget) {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    const Allocator allocator(random_items(random, 1 + round % 6, 1 + round % 5, 1 + 37 * (round % 4)));
    ASSERT_TRUE(allocator.exact());
    for (auto budget = allocator.least_bytes(); budget <= allocator.most_bytes() + 5;
         budget += 1 + (allocator.most_bytes() - allocator.least_bytes()) / 23) {
      const auto a = allocator.within(budget);
      expect_consistent(allocator, a);
      EXPECT_LE(a.bytes, budget);
      EXPECT_NEAR(a.loss, brute_force(allocator.items(), budget), kRounding);
      EXPECT_EQ(a.bound, a.loss);
    }
    EXPECT_THROW(allocator.within(allocator.least_bytes() - 1), Error);
  }
}

TEST(Allocator, FindsTheFewestBytesForALoss) {
  std::mt19937 random(11);
  for (int round = 0; round < 30; ++round) {
    const Allocator allocator(random_items(random, 2 + round % 4, 4, 64));
    const double least = allocator.within(allocator.most_bytes()).loss, most = allocator.within(allocator.least_bytes()).loss;
    for (double share : {0.0, 0.3, 0.7, 1.0}) {
      const double allowed = least + share * (most - least) + kRounding;
      std::int64_t fewest = -1;
      for_all(allocator.items(), [&](const Allocation& a) {
        if (a.loss <= allowed && (fewest < 0 || a.bytes < fewest)) fewest = a.bytes;
      });
      const auto a = allocator.below(allowed);
      expect_consistent(allocator, a);
      EXPECT_EQ(a.bytes, fewest);
    }
    EXPECT_THROW(allocator.below(least - 0.01), Error);
  }
}

TEST(Allocator, ACoarseGridSaysHowFarTheBestCanBe) {
  std::mt19937 random(3);
  std::uniform_int_distribution<std::int64_t> size(1, 1'000'000'007);
  for (int round = 0; round < 20; ++round) {
    auto items = random_items(random, 5, 4, 1);
    for (auto& item : items)
      for (auto& choice : item.choices) choice.bytes = size(random);  // no common divisor
    const Allocator allocator(items, {.max_cells = 5000});
    ASSERT_FALSE(allocator.exact());
    for (int part = 0; part <= 10; ++part) {
      const auto budget = allocator.least_bytes() + (allocator.most_bytes() - allocator.least_bytes()) * part / 10;
      const auto a = allocator.within(budget);
      expect_consistent(allocator, a);
      EXPECT_LE(a.bytes, budget);
      const double best = brute_force(items, budget);
      EXPECT_GE(a.loss, best - kRounding);
      // The bound is found by bisection: it may be low, never high.
      EXPECT_LE(a.bound, best + kRounding);
    }
    // With the whole budget there is nothing to give up, on any grid.
    EXPECT_NEAR(allocator.within(allocator.most_bytes()).loss, brute_force(items, allocator.most_bytes()), kRounding);
  }
}

TEST(Allocator, TheBoundIsTightWhereTheCurveIsConvex) {
  // Doubling the size quarters the loss: each further cell gains less, so the Lagrangian's optimum is the knapsack's.
  std::vector<Item> items;
  for (int i = 0; i < 6; ++i) items.push_back({"t", {{1'000'003, 1.0}, {2'000'005, 0.25}, {3'000'010, 0.0625}}});
  const Allocator allocator(items, {.max_cells = 3000});
  ASSERT_FALSE(allocator.exact());
  const auto a = allocator.within(12'300'000);  // all at the middle size, and a little more that nobody can use
  EXPECT_NEAR(a.loss, 6 * 0.25, 1e-12);
  EXPECT_GE(a.bound, a.loss - 0.25 * 300'000 / 1'000'003 - 1e-9);  // the little more, at the price of a byte on the next step
}

TEST(Allocator, TheCurveFallsAndItsPointsAreTheBestOfTheirSize) {
  std::mt19937 random(5);
  const Allocator allocator(random_items(random, 6, 5, 32));
  const auto points = allocator.curve(1000);
  ASSERT_GT(points.size(), 3u);
  for (std::size_t p = 0; p < points.size(); ++p) {
    expect_consistent(allocator, points[p]);
    EXPECT_NEAR(points[p].loss, brute_force(allocator.items(), points[p].bytes), kRounding);
    if (p > 0) {
      EXPECT_GT(points[p].bytes, points[p - 1].bytes);
      EXPECT_LT(points[p].loss, points[p - 1].loss);
    }
  }
  EXPECT_EQ(points.front().bytes, allocator.least_bytes());
  EXPECT_EQ(points.back().loss, allocator.within(allocator.most_bytes()).loss);
  const auto few = allocator.curve(4);
  EXPECT_LE(few.size(), 4u);
  EXPECT_EQ(few.back().bytes, points.back().bytes);
  EXPECT_EQ(allocator.curve(0).size(), 0u);
}

TEST(Allocator, RefusesSenselessItems) {
  EXPECT_THROW(Allocator(std::vector<Item>{}), std::invalid_argument);
  EXPECT_THROW(Allocator(std::vector<Item>{{"a", {}}}), std::invalid_argument);
  EXPECT_THROW(Allocator(std::vector<Item>{{"a", {{-1, 0.5}}}}), std::invalid_argument);
  EXPECT_THROW(Allocator(std::vector<Item>{{"a", {{1, NAN}}}}), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::plan
