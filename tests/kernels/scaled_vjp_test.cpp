#include "kernels/scaled_vjp.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <limits>

#include "kernels/elementwise_testing.h"
#include "kernels/half.h"

namespace lquant::kernels {
namespace {

using Arrays = std::vector<mx::array>;

float power(int exponent) { return std::ldexp(1.0f, exponent); }

/// Σ f32(x · factor) · slope, the product in x's dtype: its gradient is factor · slope, made of a cotangent `slope` in that dtype.
ArrayFunction product(float factor, float slope) {
  return [=](const Arrays& in) {
    const auto y = mx::multiply(in[0], mx::array(factor, in[0].dtype()));
    return Arrays{mx::sum(mx::multiply(mx::astype(y, mx::float32), mx::array(slope)))};
  };
}

mx::array small(mx::Dtype dtype) { return mx::full({3}, 0.5f, dtype); }

void expect_all(const mx::array& x, float value) { EXPECT_TRUE(mx::all(mx::equal(mx::astype(x, mx::float32), mx::array(value))).item<bool>()); }

TEST(LossGradients, AreMlxsOwnInOtherDtypes) {
  for (const auto dtype : {mx::float32, mx::bfloat16}) {
    const auto x = testing::normal({40}, dtype, 1);
    const ArrayFunction loss = [](const Arrays& in) { return Arrays{mx::sum(mx::square(mx::astype(mx::exp(in[0]), mx::float32)))}; };
    const auto want = mx::vjp(loss, {x}, {mx::array(1.0f)});
    const auto got = loss_gradients(loss, {x}, dtype);
    EXPECT_TRUE(testing::same_bytes(got.gradients[0], want.second[0]));
    EXPECT_TRUE(testing::same_bytes(got.values[0], want.first[0]));
  }
}

TEST(LossGradients, KeepWhatF16WouldRoundToZero) {
  // 2^-28 is below 2^-25, from which on f16 rounds to its smallest number; MLX alone gives 0.
  const auto loss = product(power(-8), power(-20));
  expect_all(mx::vjp(loss, {small(mx::float16)}, {mx::array(1.0f)}).second[0], 0);
  const auto got = loss_gradients(loss, {small(mx::float16)}, mx::float16);
  EXPECT_EQ(got.gradients[0].dtype(), mx::float32);
  expect_all(got.gradients[0], power(-28));
  EXPECT_EQ(got.values[0].item<float>(), 3 * 0.5f * power(-28));
}

TEST(LossGradients, ComeBackIntoRange) {
  // Exact powers of two: of 2^12 a multiple of 2^4 would be infinite already, 2^20 itself is.
  for (const int exponent : {0, 12, 20}) expect_all(loss_gradients(product(1, power(exponent)), {small(mx::float16)}, mx::float16).gradients[0], power(exponent));
}

TEST(LossGradients, OfALossThatIsNoNumberAreMadeOnce) {
  int passes = 0;
  const ArrayFunction loss = [&](const Arrays& in) {
    ++passes;
    return product(1, std::numeric_limits<float>::quiet_NaN())(in);
  };
  const auto got = loss_gradients(loss, {small(mx::float16)}, mx::float16);
  EXPECT_EQ(passes, 1);
  EXPECT_TRUE(got.in_range);
  EXPECT_TRUE(mx::all(mx::isnan(got.gradients[0])).item<bool>());
}

TEST(LossGradients, ThatNoMultipleBringsIntoRangeEnd) {
  const auto got = loss_gradients(product(1, 1e30f), {small(mx::float16)}, mx::float16);
  EXPECT_FALSE(got.in_range);
  EXPECT_FALSE(mx::any(mx::isfinite(got.gradients[0])).item<bool>());
  EXPECT_TRUE(mx::isfinite(got.values[0]).item<bool>());
}

TEST(GradientsThrough, FollowTheSizeOfTheCotangent) {
  const ArrayFunction times = [](const Arrays& in) { return Arrays{mx::multiply(in[0], mx::array(power(-3), in[0].dtype()))}; };
  for (const int exponent : {-60, -24, 0, 30}) {  // f16 holds 2^-24 to 2^15
    const auto cotangent = mx::array({power(exponent), -power(exponent - 12), 0.0f});
    const auto got = gradients_through(times, {small(mx::float16)}, cotangent, mx::float16).gradients[0];
    EXPECT_TRUE(testing::same_bytes(got, mx::multiply(cotangent, mx::array(power(-3))))) << exponent;
  }
  expect_all(gradients_through(times, {small(mx::float16)}, mx::zeros({3}), mx::float16).gradients[0], 0);
  for (const auto dtype : {mx::float32, mx::bfloat16}) {
    const auto x = testing::normal({3}, dtype, 1), cotangent = testing::normal({3}, dtype, 2);
    EXPECT_TRUE(testing::same_bytes(gradients_through(times, {x}, cotangent, dtype).gradients[0], mx::vjp(times, {x}, {cotangent}).second[0]));
  }
}

TEST(Half, WidenedGradientsStayF32) {
  const auto x = small(mx::float16);
  const auto got = mx::vjp([](const Arrays& in) { return Arrays{mx::sum(widened(in[0]))}; }, {x}, {mx::array(power(-40))}).second[0];
  EXPECT_EQ(got.dtype(), mx::float32);
  expect_all(got, power(-40));
  EXPECT_EQ(widened(x).dtype(), mx::float32);
}

TEST(Half, PowersOfTwo) {
  EXPECT_EQ(power_of_two_below(1), 1);
  EXPECT_EQ(power_of_two_below(7.9), 4);
  EXPECT_EQ(power_of_two_below(0.3), 0.25f);
  for (const double none : {0.0, -3.0, std::numeric_limits<double>::infinity(), std::nan("")}) EXPECT_EQ(power_of_two_below(none), 1);
}

}  // namespace
}  // namespace lquant::kernels
