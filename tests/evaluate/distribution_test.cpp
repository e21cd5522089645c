#include "evaluate/distribution.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <stdexcept>

#include "evaluate/scale.h"

namespace lquant::evaluate {
namespace {

TEST(Distribution, EveryValueIsInOneBin) {
  const std::vector<float> values{0, -1e-9f, 1e-5f, 0.0100001f, 0.0158f, 0.5f, 0.99f};
  const auto d = distribution_of(values, {-2, 0});
  EXPECT_EQ(d.below, 3);
  EXPECT_EQ(d.counts, (std::vector<std::int64_t>{2, 0, 0, 0, 0, 0, 0, 0, 1, 1}));  // edges 0.01, 0.0158…, …, 0.398, 0.631, 1
  EXPECT_DOUBLE_EQ(d.edge(0), 0.01);
  EXPECT_DOUBLE_EQ(d.edge(5), 0.1);
  EXPECT_DOUBLE_EQ(d.edge(10), 1);
}

TEST(Distribution, WhatIsAboveGoesToTheLastBin) {
  const auto d = distribution_of({1.0f, 40.0f}, {-1, 0});
  EXPECT_EQ(d.counts.back(), 2);
  EXPECT_EQ(d.below, 0);
}

TEST(Distribution, QuantilesAreElements) {
  std::vector<float> values(101);
  std::iota(values.rbegin(), values.rend(), 0.0f);
  const auto d = distribution_of(values, {0, 3});
  EXPECT_EQ(d.median, 50);
  EXPECT_EQ(d.p90, 90);
  EXPECT_EQ(d.p99, 99);
  EXPECT_EQ(d.max, 100);
  EXPECT_THROW(distribution_of({}, {0, 1}), std::invalid_argument);
}

TEST(Distribution, DecadesHoldTheLargestAndAreFew) {
  const auto usual = decades_of({0.002f, 0.03f, 5});
  EXPECT_EQ(usual.first, -3);
  EXPECT_EQ(usual.last, 1);
  const auto wide = decades_of({1e-30f, 1e-30f, 2});
  EXPECT_EQ(wide.last - wide.first, 6);
  const auto none = decades_of({0, 0});
  EXPECT_LT(none.first, none.last);
  const auto same = decades_of({1, 1});
  EXPECT_EQ(same.last, 1);
  EXPECT_LT(same.first, same.last);
  const auto both = joined({-3, 0}, {-2, 1});
  EXPECT_EQ(both.first, -3);
  EXPECT_EQ(both.last, 1);
}

TEST(Scale, LogarithmicPlaces) {
  const Scale s{true, 0.01, 100, 0, 400};
  EXPECT_NEAR(s.at(0.01), 0, 1e-9);
  EXPECT_NEAR(s.at(1), 200, 1e-9);
  EXPECT_NEAR(s.at(100), 400, 1e-9);
  EXPECT_EQ(s.at(0), 0);  // an error bar that reaches zero ends at the axis
  EXPECT_EQ(s.at(-1), 0);
  EXPECT_EQ(s.at(1e9), 400);
  const Scale up{true, 0.1, 10, 300, 100};
  EXPECT_NEAR(up.at(1), 200, 1e-9);
}

TEST(Scale, LogarithmicTicks) {
  std::vector<std::string> labels;
  for (const auto& tick : Scale{true, 1e-5, 10, 0, 1}.ticks()) labels.push_back(tick.label);
  EXPECT_EQ(labels, (std::vector<std::string>{"1e-5", "1e-4", "0.001", "0.01", "0.1", "1", "10"}));
  labels.clear();
  for (const auto& tick : Scale{true, 0.02, 0.5, 0, 1}.ticks()) labels.push_back(tick.label);
  EXPECT_EQ(labels, (std::vector<std::string>{"0.02", "0.05", "0.1", "0.2", "0.5"}));
}

TEST(Scale, HoldsItsValues) {
  const auto s = log_scale({0.013, 0.0, 0.4}, 0, 1);
  EXPECT_DOUBLE_EQ(s.low, 0.01);
  EXPECT_DOUBLE_EQ(s.high, 0.5);
  const auto one = log_scale({0.1}, 0, 1);
  EXPECT_LE(one.low, 0.1);
  EXPECT_LT(one.low, one.high);
  const auto none = log_scale({0, -1}, 0, 1);
  EXPECT_LT(none.low, none.high);
}

TEST(Scale, LinearTicksAreRound) {
  std::vector<double> values;
  for (const auto& tick : linear_scale({10, 31}, 0, 1).ticks()) values.push_back(tick.value);
  EXPECT_EQ(values, (std::vector<double>{10, 15, 20, 25, 30}));
  const auto same = linear_scale({5, 5}, 0, 1);
  EXPECT_LT(same.low, 5);
  EXPECT_GT(same.high, 5);
  EXPECT_NEAR(same.at(5), 0.5, 1e-9);
}

}  // namespace
}  // namespace lquant::evaluate
