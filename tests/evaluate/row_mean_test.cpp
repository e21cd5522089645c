#include "evaluate/row_mean.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace lquant::evaluate {
namespace {

// m = (2 + 9 + 1) / (2 + 3 + 1) = 2; s − m·n = −2, 3, −1; squares 14; error = √(14 · 3/2) / 6 = √21 / 6.
TEST(TokenMean, IsTheRatioEstimator) {
  const auto mean = token_mean({{2, 2}, {9, 3}, {1, 1}});
  EXPECT_DOUBLE_EQ(mean.value, 2);
  EXPECT_DOUBLE_EQ(mean.error, std::sqrt(21.0) / 6);
}

TEST(TokenMean, RowsWithoutTokensAreNone) {
  const auto mean = token_mean({{2, 2}, {0, 0}, {9, 3}, {1, 1}});
  EXPECT_DOUBLE_EQ(mean.value, 2);
  EXPECT_DOUBLE_EQ(mean.error, std::sqrt(21.0) / 6);
}

TEST(TokenMean, FewerThanTwoRowsHaveNoError) {
  EXPECT_EQ(token_mean({{3, 2}}).value, 1.5);
  EXPECT_TRUE(std::isnan(token_mean({{3, 2}}).error));
  EXPECT_TRUE(std::isnan(token_mean({{3, 2}, {0, 0}}).error));
  EXPECT_EQ(token_mean({}).value, 0);
  EXPECT_TRUE(std::isnan(token_mean({}).error));
  EXPECT_EQ(token_mean({{3, 2}, {3, 2}}).error, 0);  // two that agree: known, and none
}

// Differences −1, −3, −2 of 4, 6 and 2 tokens: m = −6/12 = −1/2; d − m·n = 1, 0, −1; error = √(2 · 3/2) / 12 = √3 / 12.
// Either mean alone has √(43104 · 3/2) / 12 or so: hard rows are hard for both.
TEST(PairedDifference, IsOfTheRowsDifferences) {
  const std::vector<RowSum> rows{{3, 4}, {297, 6}, {18, 2}}, others{{4, 4}, {300, 6}, {20, 2}};
  const auto difference = paired_difference(rows, others);
  EXPECT_DOUBLE_EQ(difference.value, -0.5);
  EXPECT_DOUBLE_EQ(difference.error, std::sqrt(3.0) / 12);
  EXPECT_NEAR(difference.value, token_mean(rows).value - token_mean(others).value, 1e-12);
  EXPECT_GT(token_mean(rows).error, 50 * difference.error);
  EXPECT_DOUBLE_EQ(paired_difference(others, rows).value, 0.5);
}

TEST(PairedDifference, OfOneRowHasNoError) {
  const auto difference = paired_difference({{3, 4}}, {{4, 4}});
  EXPECT_DOUBLE_EQ(difference.value, -0.25);
  EXPECT_TRUE(std::isnan(difference.error));
}

TEST(PairedDifference, RefusesOtherRows) {
  EXPECT_THROW(paired_difference({{3, 4}}, {{3, 5}}), std::invalid_argument);
  EXPECT_THROW(paired_difference({{3, 4}}, {}), std::invalid_argument);
}

TEST(PairedDifference, WhatIsNoNumberStaysNone) { EXPECT_TRUE(std::isnan(paired_difference({{NAN, 4}, {1, 2}}, {{4, 4}, {1, 2}}).value)); }

}  // namespace
}  // namespace lquant::evaluate
