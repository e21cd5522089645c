#include "codec/feedback.h"

#include <gtest/gtest.h>

#include <cmath>

#include "codec/feedback_testing.h"
#include "kernels/primitive.h"

namespace lquant::codec {
namespace {

struct Case {
  int bits, group, k;
};

class FeedbackTest : public ::testing::TestWithParam<Case> {};

// Where the textbook stands clear of the border between two codes by more than f32 can err, ours must choose its code. With u = 2⁻²⁴ and κ the
// condition number of H, the factor's relative error is at most about K·κ·u (Sun 1991, theorem 1.1), and so is that of the feedback taken up; the sum
// of K products adds K·u of the same, the weight and the division a few u of themselves.
void expect_textbook(const Problem& p, const Format& format) {
  const auto start = start_of(p, format);
  const int k = p.w.shape(1), top = (1 << format.bits) - 1;
  const auto found = as_matrix(round_with_feedback(p.w, p.unit(), start.scales, start.biases, natural(k, format.group_size), format));
  const auto expected =
      oracle::textbook_gptq(as_matrix(p.w), as_matrix(p.hessian), as_matrix(start.scales), as_matrix(start.biases), format.group_size, top, found);
  const auto weights = as_matrix(p.w);
  const double u = std::ldexp(1.0, -24), relative = k * (oracle::condition(as_matrix(p.hessian)) + 1) * u;
  std::size_t compared = 0;
  for (std::size_t r = 0; r < found.size(); ++r) {
    for (int j = 0; j < k; ++j) {
      const double bound = relative * expected.feedback[r][j] + 8 * u * (std::abs(weights[r][j]) + expected.feedback[r][j]);
      if (expected.margin[r][j] <= bound) continue;
      ASSERT_EQ(found[r][j], expected.codes[r][j]) << "row " << r << ", column " << j;
      ++compared;
    }
  }
  EXPECT_GT(compared, found.size() * k * 9 / 10);  // else the bound, not the code, would pass the test
}

TEST_P(FeedbackTest, EqualsTheTextbook) {
  const auto [bits, group, k] = GetParam();
  const Problem p(24, k, 7 * bits + group);
  expect_textbook(p, {Mode::affine, bits, group});
  const kernels::MlxOpsOnly guard;
  expect_textbook(p, {Mode::affine, bits, group});
}

TEST_P(FeedbackTest, LowersTheErrorOfRounding) {
  const auto [bits, group, k] = GetParam();
  const Problem p(24, k, 11 * bits + group);
  const Format format{Mode::affine, bits, group};
  const auto start = start_of(p, format);
  const Coded solved{round_with_feedback(p.w, p.unit(), start.scales, start.biases, natural(k, group), format), start.scales, start.biases};
  EXPECT_LT(error_of(p, solved, format), error_of(p, start, format));
  // The sum in f32 products: K terms each, relative to the sum of magnitudes, which H's positive diagonal dominates.
  EXPECT_NEAR(feedback_error(p.w, values_of(solved, format), p.hessian), error_of(p, solved, format), 1e-3 * error_of(p, solved, format));
}

INSTANTIATE_TEST_SUITE_P(Formats, FeedbackTest,
                         ::testing::Values(Case{2, 32, 96}, Case{3, 64, 192}, Case{4, 64, 128}, Case{4, 128, 256}, Case{5, 32, 160}, Case{6, 64, 64},
                                           Case{8, 32, 64}),
                         [](const auto& info) {
                           return "b" + std::to_string(info.param.bits) + "g" + std::to_string(info.param.group) + "k" + std::to_string(info.param.k);
                         });

TEST(Feedback, VisitsColumnsInAnyOrder) {
  const Problem p(8, 128, 5);
  const Format format{Mode::affine, 3, 32};
  const auto start = start_of(p, format);
  std::vector<int> order(128), group(128);
  for (int j = 0; j < 128; ++j) order[j] = (37 * j + 5) % 128, group[j] = order[j] / 32;
  const auto indices = mx::array(order.data(), {128}, mx::int32);
  Problem turned = p;
  turned.w = mx::take(p.w, indices, 1);
  turned.hessian = mx::take(mx::take(p.hessian, indices, 0), indices, 1);
  mx::eval(turned.w, turned.hessian);
  const auto codes = as_matrix(round_with_feedback(turned.w, turned.unit(), start.scales, start.biases, group, format));
  // Each column was coded with its own group's scale: its value lies within half a step of what it aimed at, so the values make sense only so.
  oracle::Matrix values(8, std::vector<double>(128));
  const auto s = as_matrix(start.scales), b = as_matrix(start.biases);
  for (int r = 0; r < 8; ++r)
    for (int j = 0; j < 128; ++j) values[r][order[j]] = s[r][group[j]] * codes[r][j] + b[r][group[j]];
  const double solved = oracle::quadratic_error(difference(as_matrix(p.w), values), as_matrix(p.hessian));
  EXPECT_LT(solved, error_of(p, start, format));
}

TEST(Feedback, TakesColumnsAsMlxDoes) {
  const std::vector<int> order{2, 0, 0, 4, 1};
  const auto indices = mx::array(order.data(), {5}, mx::int32);
  for (const auto& dtype : {mx::float32, mx::uint8}) {
    const auto x = mx::astype(mx::reshape(mx::arange(300 * 5), {300, 5}), dtype);  // more rows than one slab
    EXPECT_TRUE(mx::array_equal(take_columns(x, order), mx::take(x, indices, 1)).item<bool>());
  }
  const auto x = mx::zeros({2, 5}, mx::float32);
  EXPECT_THROW(take_columns(x, {0, 1, 2, 3, 5}), std::invalid_argument);
  EXPECT_THROW(take_columns(x, {0, 1}), std::invalid_argument);
}

class RefineTest : public ::testing::TestWithParam<mx::Dtype> {};

TEST_P(RefineTest, NeverRises) {
  for (int bits : {2, 3, 4, 6, 8}) {
    const Problem p(16, 128, 100 + bits);
    const Format format{Mode::affine, bits, 32};
    auto at = start_of(p, format, GetParam());
    double before = error_of(p, at, format);
    const double first = before;
    for (int sweep = 0; sweep < 3; ++sweep) {
      at = refine(p.w, p.hessian, at, format, 1);
      EXPECT_EQ(at.scales.dtype(), GetParam());
      const double after = error_of(p, at, format);
      // Each accepted change lowers an f32 sum of 2K products; what it misses by is K·u of the sum.
      EXPECT_LE(after, before * (1 + 128 * std::ldexp(1.0, -23))) << bits << " bits, sweep " << sweep;
      before = after;
    }
    EXPECT_LT(before, 0.9 * first) << bits << " bits";
  }
}

TEST_P(RefineTest, MlxOpsDoTheSame) {
  const Problem p(16, 128, 9);
  const Format format{Mode::affine, 3, 64};
  const auto start = start_of(p, format, GetParam());
  const double ours = error_of(p, refine(p.w, p.hessian, start, format, 2), format);
  const kernels::MlxOpsOnly guard;
  const double theirs = error_of(p, refine(p.w, p.hessian, start, format, 2), format);
  // Close calls may fall otherwise and lead to another optimum nearby; a wrong step would be far off.
  EXPECT_NEAR(theirs, ours, 0.05 * ours);
  EXPECT_LT(theirs, 0.9 * error_of(p, start, format));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RefineTest, ::testing::Values(mx::float32, mx::bfloat16, mx::float16), [](const auto& info) {
  return info.param == mx::float32 ? "f32" : info.param == mx::bfloat16 ? "bf16" : "f16";
});

TEST(Refine, EndsWhereNoCodeCanMove) {
  const Problem p(4, 64, 3);
  const Format format{Mode::affine, 2, 32};
  const auto end = refine(p.w, p.hessian, start_of(p, format), format, 60);
  const auto weights = as_matrix(p.w), h = as_matrix(p.hessian), codes = as_matrix(end.codes), s = as_matrix(end.scales);
  const auto e = difference(weights, as_matrix(values_of(end, format)));
  for (int r = 0; r < 4; ++r) {
    for (int j = 0; j < 64; ++j) {
      double slope = 0;
      for (int i = 0; i < 64; ++i) slope += e[r][i] * h[i][j];
      for (int q = 0; q < 4; ++q) {
        const double d = (codes[r][j] - q) * s[r][j / 32];  // the error's change when code q is taken
        EXPECT_GE(2 * slope * d + h[j][j] * d * d, -1e-5) << r << " " << j << " " << q;
      }
    }
  }
}

TEST(Feedback, RefusesShapesThatDisagree) {
  const Problem p(4, 64, 3);
  const Format format{Mode::affine, 4, 32};
  const auto start = start_of(p, format);
  EXPECT_THROW(round_with_feedback(p.w, mx::zeros({32, 32}), start.scales, start.biases, natural(64, 32), format), std::invalid_argument);
  EXPECT_THROW(round_with_feedback(p.w, p.unit(), start.scales, start.biases, natural(32, 32), format), std::invalid_argument);
  EXPECT_THROW(round_with_feedback(p.w, p.unit(), start.scales, start.biases, natural(64, 16), format), std::invalid_argument);
  EXPECT_THROW(refine(p.w, p.hessian, {mx::zeros({4, 32}, mx::uint8), start.scales, start.biases}, format, 1), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::codec
