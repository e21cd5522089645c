// What an expert of few tokens is quantized by. Inputs are small whole numbers and sums of tokens powers of two, so that f32 is exact.
#include "pipeline/experts.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>

namespace lquant::pipeline {
namespace {

namespace mx = mlx::core;

constexpr int kWidth = 4, kLent = 2 * kWidth;

class ExpertsTest : public ::testing::Test, public run::NoEvents {
 protected:
  run::Stop stop;
  run::Context context{*this, stop};
  std::vector<std::string> warnings;
  void warning(const std::string& text) override { warnings.push_back(text); }

  static model::LinearSpec linear(int experts, int width = kWidth) {
    return {.path = "up", .role = model::Role::expert_up, .out = 3, .in = width, .experts = experts};
  }

  struct Read {
    calibration::ExpertInputs inputs;
    std::vector<mx::array> rows;  ///< of each expert [n, width]
  };
  /// Experts that saw so many tokens.
  static Read read(const std::vector<int>& tokens, int width = kWidth, unsigned seed = 0) {
    Read read;
    std::vector<std::int32_t> offsets{0};
    for (std::size_t e = 0; e < tokens.size(); ++e) {
      offsets.push_back(offsets.back() + tokens[e]);
      read.rows.push_back(mx::astype(mx::random::randint(-3, 4, {tokens[e], width}, mx::int32, mx::random::key(seed + e)), mx::float32));
    }
    const int rows = offsets.back();
    read.inputs.add(mx::concatenate(read.rows, 0),
                    {mx::array(offsets.begin(), {static_cast<int>(offsets.size())}, mx::int32), mx::arange(rows, mx::int32)}, nullptr);
    return read;
  }

  static mx::array moment(const mx::array& rows) { return mx::matmul(mx::transpose(rows), rows); }
};

TEST_F(ExpertsTest, AnExpertsHessianIsItsOwnAndSomeOfTheMean) {
  const std::vector<int> tokens{3, 12, 0, 8, 9};  // 32 together
  const auto seen = read(tokens);
  const StackInputs inputs{&seen.inputs};
  const auto lent = mx::multiply(moment(mx::concatenate(seen.rows, 0)), mx::array(kLent / 32.0f));
  const auto expected = tokens_of(linear(5), inputs);
  std::vector<int> order;
  each_hessian(linear(5), inputs, [&](int e, const calibration::Hessian& h) {
    order.push_back(e);
    EXPECT_EQ(h.tokens, tokens[e] + kLent);
    EXPECT_EQ(h.tokens, expected[e]);
    const auto own = tokens[e] > 0 ? moment(seen.rows[e]) : mx::zeros({kWidth, kWidth});
    EXPECT_TRUE(mx::array_equal(h.moment, mx::add(own, lent)).item<bool>()) << e;
  });
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST_F(ExpertsTest, TokensOfAllSetsOfBatchesCount) {
  const auto first = read({3, 5}), second = read({5, 3}, kWidth, 9);
  const auto all = mx::concatenate({first.rows[0], first.rows[1], second.rows[0], second.rows[1]}, 0);
  each_hessian(linear(2), {&first.inputs, &second.inputs}, [&](int e, const calibration::Hessian& h) {
    EXPECT_EQ(h.tokens, 8 + kLent);
    const auto own = mx::add(moment(first.rows[e]), moment(second.rows[e]));
    EXPECT_TRUE(mx::array_equal(h.moment, mx::add(own, mx::multiply(moment(all), mx::array(kLent / 16.0f)))).item<bool>()) << e;
  });
}

TEST_F(ExpertsTest, WhereNobodySawAnythingOrNobodyRoutesNothingIsLent) {
  const auto nothing = read({0, 0}), few = read({1, 2});
  each_hessian(linear(2), {&nothing.inputs}, [](int, const calibration::Hessian& h) { EXPECT_EQ(h.tokens, 0); });
  EXPECT_EQ(tokens_of(linear(2), {&nothing.inputs}), (std::vector<double>{0, 0}));
  auto sliced = linear(2);
  sliced.stack = model::LinearSpec::Stack::sliced;
  EXPECT_FALSE(sliced.routed());
  EXPECT_EQ(tokens_of(sliced, {&few.inputs}), (std::vector<double>{1, 2}));
  each_hessian(sliced, {&few.inputs},
               [&](int e, const calibration::Hessian& h) { EXPECT_TRUE(mx::array_equal(h.moment, moment(few.rows[e])).item<bool>()) << e; });
  warn_of_starved(sliced, {&few.inputs}, context);
  EXPECT_TRUE(warnings.empty());
}

TEST_F(ExpertsTest, TheWarningNamesThoseBelowAnEighthOfTheirInputs) {
  constexpr int kWide = 32;  // an eighth: 4
  const auto seen = read({4, 3, 20, 0}, kWide);
  warn_of_starved(linear(4, kWide), {&seen.inputs}, context);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("2 of 4 experts saw fewer than 4 tokens (1, 3)"), std::string::npos) << warnings[0];
  const auto enough = read({4, 5}, kWide);
  warn_of_starved(linear(2, kWide), {&enough.inputs}, context);
  EXPECT_EQ(warnings.size(), 1u);
}

}  // namespace
}  // namespace lquant::pipeline
