#include "kernels/cholesky.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>

#include "kernels/moments.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

mx::array positive(int k, unsigned seed) {
  const auto x = mx::random::normal({2 * k, k}, mx::float32, mx::random::key(seed));
  return mx::add(mx::divide(gram(x), mx::array(2.0f * static_cast<float>(k))), mx::multiply(mx::eye(k), mx::array(0.1f)));
}

float largest(const mx::array& x) { return mx::max(mx::abs(x)).item<float>(); }

class CholeskyTest : public ::testing::TestWithParam<int> {};

// Backward error of Cholesky (Higham, Accuracy and Stability, theorem 10.3): |RRᵀ − A| ≤ (K + 1)·u/(1 − (K + 1)·u) · |R||Rᵀ|, whose entries are
// at most the largest of A's diagonal; the check's own product adds as much again.
TEST_P(CholeskyTest, FactorTimesItsTransposeIsTheMatrix) {
  const int k = GetParam();
  const auto a = positive(k, k);
  const auto r = upper_factor(a);
  ASSERT_TRUE(r);
  EXPECT_EQ(largest(mx::tril(*r, -1)), 0);
  EXPECT_LE(largest(mx::subtract(mx::matmul(*r, mx::transpose(*r)), a)), 2 * (k + 1) * std::ldexp(1.0f, -24) * largest(a));
}

// x · a differs from b by at most (3K + 1)·u·|x||R||Rᵀ| (theorem 10.4), entries of |x||R||Rᵀ| by K·max|x|·max|a|; the check's product again.
TEST_P(CholeskyTest, SolvesFromTheRight) {
  const int k = GetParam();
  const auto a = positive(k, k), b = mx::random::normal({5, k}, mx::float32, mx::random::key(1));
  const auto x = PositiveSolver(*upper_factor(a)).solve(b);
  EXPECT_LE(largest(mx::subtract(mx::matmul(x, a), b)), (4 * k + 1) * std::ldexp(1.0f, -24) * k * largest(x) * largest(a));
}

INSTANTIATE_TEST_SUITE_P(Sizes, CholeskyTest, ::testing::Values(1, 2, 3, 17, 64, 129, 300));

TEST(Cholesky, SaysWhenAMatrixIsNotPositiveDefinite) {
  EXPECT_FALSE(upper_factor(mx::zeros({4, 4})));
  EXPECT_FALSE(upper_factor(mx::negative(mx::eye(4))));
  const MlxOpsOnly guard;
  EXPECT_FALSE(upper_factor(mx::zeros({4, 4})));
}

TEST(Cholesky, RefusesOtherShapes) {
  EXPECT_THROW(upper_factor(mx::zeros({4, 5})), std::invalid_argument);
  EXPECT_THROW(PositiveSolver(mx::eye(4)).solve(mx::ones({2, 5})), std::invalid_argument);
  EXPECT_THROW(PositiveSolver(mx::zeros({4, 5})), std::invalid_argument);
  EXPECT_THROW(upper_factor(mx::astype(mx::eye(4), mx::bfloat16)), std::invalid_argument);
}

// gram and cross_moment: sums of M products of numbers below about 4; f32 sums err by M·u of the sum of magnitudes. bf16 inputs are exact.
class MomentsTest : public ::testing::TestWithParam<std::tuple<int, int, mx::Dtype>> {};

TEST_P(MomentsTest, EqualMlx) {
  const auto [rows, k, dtype] = GetParam();
  const auto x = mx::astype(mx::random::normal({2, rows, k}, mx::float32, mx::random::key(3)), dtype);
  const auto y = mx::astype(mx::random::normal({2, rows, k + 3}, mx::float32, mx::random::key(4)), dtype);
  const auto flat = [](const mx::array& a) { return mx::astype(mx::reshape(a, {-1, a.shape(-1)}), mx::float32); };
  const auto magnitude = [&](const mx::array& a, const mx::array& b) {
    return largest(mx::matmul(mx::transpose(mx::abs(flat(a))), mx::abs(flat(b))));
  };
  const float u = std::ldexp(1.0f, -24);
  const auto h = gram(x);
  EXPECT_LE(largest(mx::subtract(h, mx::matmul(mx::transpose(flat(x)), flat(x)))), 2 * 2 * rows * u * magnitude(x, x));
  EXPECT_EQ(largest(mx::subtract(h, mx::transpose(h))), 0);
  EXPECT_LE(largest(mx::subtract(cross_moment(x, y), mx::matmul(mx::transpose(flat(x)), flat(y)))), 2 * 2 * rows * u * magnitude(x, y));
}

TEST_P(MomentsTest, ShiftIsTheMomentOfTheDifference) {
  const auto [rows, k, dtype] = GetParam();
  const auto x = mx::astype(mx::random::normal({rows, k}, mx::float32, mx::random::key(5)), dtype);
  const auto reference = mx::astype(mx::random::normal({rows, k}, mx::float32, mx::random::key(6)), dtype);
  const auto expected = mx::matmul(mx::transpose(mx::astype(mx::subtract(reference, x), mx::float32)), mx::astype(x, mx::float32));
  const auto magnitude = mx::matmul(mx::transpose(mx::abs(mx::astype(mx::subtract(reference, x), mx::float32))), mx::abs(mx::astype(x, mx::float32)));
  EXPECT_LE(largest(mx::subtract(shift_moment(reference, x), expected)), 2 * rows * std::ldexp(1.0f, -24) * largest(magnitude));
}

INSTANTIATE_TEST_SUITE_P(Shapes, MomentsTest,
                         ::testing::Combine(::testing::Values(1, 7, 100), ::testing::Values(1, 33, 384, 801),
                                            ::testing::Values(mx::float32, mx::bfloat16)));

TEST(Moments, RefuseShapesThatDisagree) { EXPECT_THROW(cross_moment(mx::ones({3, 4}), mx::ones({4, 4})), std::invalid_argument); }

}  // namespace
}  // namespace lquant::kernels
