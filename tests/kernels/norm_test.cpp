#include "kernels/norm.h"

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_norm.h"

namespace lquant::kernels {
namespace {

using namespace testing;
constexpr float kEps = 1e-5f;

/// Error of f32 sums: a sum of K squares is off by at most K units in relative terms, whatever its order; halved by the root, but
/// the gradient has three powers of the root and a second sum. Eight more units cover the single operations.
double f32_error(int width) { return (2.0 * width + 8) * kF32; }

class Norm : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  int rows = std::get<0>(GetParam()), width = std::get<1>(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Sizes, Norm, ::testing::Combine(::testing::Values(1, 3), ::testing::Values(1, 7, 63, 65, 576)));

TEST_P(Norm, ForwardMatchesOracle) {
  for (auto dtype : kDtypes) {
    const auto x = normal({rows, width}, dtype, 1, 2), w = normal({width}, dtype, 2, 0.3f, 1), residual = normal({rows, width}, dtype, 3);
    const auto plain = oracle::rms_norm(doubles(x), Values(width, 1.0), kEps), scaled = oracle::rms_norm(doubles(x), doubles(w), kEps);
    const auto shifted_weight = doubles(mx::add(w, mx::array(1.0f, dtype)));
    const auto shifted = oracle::rms_norm(doubles(x), shifted_weight, kEps);
    const double u = unit(dtype), f32 = f32_error(width);
    Values one, two, shifted_two, sum, sum_tolerance;  // one rounding to dtype without weight, two with it, three with the residual
    const auto stream = doubles(residual);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      one.push_back(std::abs(plain[i]) * (u + f32));
      two.push_back(std::abs(scaled[i]) * (2.01 * u + f32));  // 2u + u² ≤ 2.01u
      shifted_two.push_back(std::abs(shifted[i]) * (2.01 * u + f32));
      sum.push_back(stream[i] + scaled[i]);
      sum_tolerance.push_back(two.back() * (1 + u) + std::abs(sum.back()) * u);
    }
    expect_close(rms_norm(x, std::nullopt, kEps), plain, one, "no weight");
    expect_close(rms_norm(x, w, kEps), scaled, two, "weight");
    expect_close(rms_norm(x, w, kEps, 1), shifted, shifted_two, "weight + 1");
    expect_close(add_norm(residual, x, w, kEps), sum, sum_tolerance, "add_norm");
    const auto pair = residual_norm(x, w, kEps);
    EXPECT_TRUE(same_bytes(pair.first, x));
    expect_close(pair.second, scaled, two, "residual_norm");
  }
}

TEST_P(Norm, GradientsMatchFiniteDifferences) {
  for (auto dtype : kDtypes) {
    const auto x = normal({rows, width}, dtype, 4), w = normal({width}, dtype, 5, 0.3f, 1), residual = normal({rows, width}, dtype, 6);
    const auto g = normal({rows, width}, dtype, 7), stream_g = normal({rows, width}, dtype, 8);
    const auto xd = doubles(x), wd = doubles(w), gd = doubles(g), sd = doubles(stream_g);
    const auto x_terms = oracle::rms_norm_gradient_terms(xd, wd, gd, kEps), w_terms = oracle::rms_norm_weight_terms(xd, gd, width, kEps);
    auto dx = numeric_gradient([&](const Values& v) { return oracle::rms_norm(v, wd, kEps); }, xd, gd);
    const auto dw = numeric_gradient([&](const Values& v) { return oracle::rms_norm(xd, v, kEps); }, wd, gd);
    // MLX's ops are differentiated one by one: in 16 bits the product of cotangent and weight is rounded before the sums over it, dx before the
    // stream's gradient is added, and of dw x / rms, each product with it and the partial sums.
    const double u = unit(dtype), f32 = f32_error(width), coarse = on_mlx(dtype) ? u : 0, least = kDifference + 2 * tiny(dtype);
    Values x_tolerance, w_tolerance, both, both_tolerance;
    for (std::size_t i = 0; i < dx.size(); ++i) {
      x_tolerance.push_back(x_terms[i] * (f32 + kDifference + coarse) + std::abs(dx[i]) * u + least);
      both.push_back(dx[i] + sd[i]);
      both_tolerance.push_back(x_terms[i] * (f32 + kDifference + coarse) + (std::abs(both[i]) + std::abs(sd[i]) * kF32 + std::abs(dx[i])) * u * 1.01 +
                               kF32 * std::abs(sd[i]) + least);
    }
    for (std::size_t i = 0; i < dw.size(); ++i)
      w_tolerance.push_back(w_terms[i] * (f32 + rows * kF32 + kDifference + (2 + rows) * coarse) + std::abs(dw[i]) * u + rows * least);

    const auto norm_vjp = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{rms_norm(in[0], in[1], kEps)}; }, {x, w}, {g}).second;
    expect_close(norm_vjp[0], dx, x_tolerance, "rms_norm: x");
    expect_close(norm_vjp[1], dw, w_tolerance, "rms_norm: weight");
    EXPECT_EQ(norm_vjp[1].dtype(), dtype);
    const auto pair = [](const mx::array& x, const mx::array& w) {
      const auto both = residual_norm(x, w, kEps);
      return std::vector{both.first, both.second};
    };
    const auto pair_vjp = mx::vjp([&](const std::vector<mx::array>& in) { return pair(in[0], in[1]); }, {x, w}, {stream_g, g}).second;
    expect_close(pair_vjp[0], both, both_tolerance, "residual_norm: x");
    expect_close(pair_vjp[1], dw, w_tolerance, "residual_norm: weight");
    const auto sum_vjp =
        mx::vjp([](const std::vector<mx::array>& in) { return std::vector{add_norm(in[0], in[1], in[2], kEps)}; }, {residual, x, w}, {g}).second;
    EXPECT_TRUE(same_bytes(sum_vjp[0], g));
    expect_close(sum_vjp[1], dx, x_tolerance, "add_norm: y");
    expect_close(sum_vjp[2], dw, w_tolerance, "add_norm: weight");
  }
}

// Asked for one gradient at a time, and in any order, the ops give the same bytes as for all at once.
TEST(NormGradient, OfOneInputAlone) {
  const auto x = normal({70, 65}, mx::bfloat16, 1), w = normal({65}, mx::bfloat16, 2), g = normal({70, 65}, mx::bfloat16, 3);
  const auto all = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{rms_norm(in[0], in[1], kEps)}; }, {x, w}, {g}).second;
  const auto swapped = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{rms_norm(in[1], in[0], kEps)}; }, {w, x}, {g}).second;
  const auto only_x = mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{rms_norm(in[0], w, kEps)}; }, {x}, {g}).second;
  const auto only_w = mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{rms_norm(x, in[0], kEps)}; }, {w}, {g}).second;
  EXPECT_TRUE(same_bytes(all[0], only_x[0]));
  EXPECT_TRUE(same_bytes(all[1], only_w[0]));
  EXPECT_TRUE(same_bytes(all[0], swapped[1]));
  EXPECT_TRUE(same_bytes(all[1], swapped[0]));
}

// A norm without weight passes its gradient through the same loop.
TEST(NormGradient, WithoutWeight) {
  const auto x = normal({3, 65}, mx::float32, 1), g = normal({3, 65}, mx::float32, 2), ones = mx::ones({65}, mx::float32);
  const auto bare = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{rms_norm(in[0], std::nullopt, kEps)}; }, {x}, {g}).second;
  const auto with = mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{rms_norm(in[0], ones, kEps)}; }, {x}, {g}).second;
  EXPECT_TRUE(same_bytes(bare[0], with[0]));
}

// The roundings are MLX's. Where the two sums of squares differ in their last bit, x / rms may fall on the other side of a rounding
// (once in 2¹⁶ elements, say), and that step of one unit can grow to two by the product with the weight.
TEST(Norm, EqualsMlxInBf16) {
  const auto x = normal({64, 576}, mx::bfloat16, 1, 3), w = normal({576}, mx::bfloat16, 2, 0.3f, 1);
  const auto ours = doubles(rms_norm(x, w, kEps)), theirs = doubles(mx::fast::rms_norm(x, w, kEps));
  std::size_t different = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    different += ours[i] != theirs[i];
    ASSERT_LE(std::abs(ours[i] - theirs[i]), 2 * std::ldexp(1.0, std::ilogb(theirs[i]) - 7)) << i;
  }
  EXPECT_LE(different, ours.size() / 1000);
}

TEST(Norm, DoesNotDependOnThreads) {
  const auto x = normal({517, 576}, mx::bfloat16, 1), w = normal({576}, mx::bfloat16, 2), g = normal({517, 576}, mx::bfloat16, 3);
  expect_thread_independent([&] {
    auto both = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{rms_norm(in[0], in[1], kEps)}; }, {x, w}, {g});
    both.first.insert(both.first.end(), both.second.begin(), both.second.end());
    return both.first;
  });
}

TEST(Norm, TakesViewsEmptyTensorsAndOtherWeights) {
  const auto x = normal({5, 4, 63}, mx::bfloat16, 1), w = normal({63}, mx::float32, 2);
  const auto turned = mx::transpose(x, {1, 0, 2});
  EXPECT_TRUE(same_bytes(rms_norm(turned, w, kEps), mx::transpose(rms_norm(x, w, kEps), {1, 0, 2})));
  EXPECT_EQ(rms_norm(x, w, kEps).dtype(), mx::bfloat16);
  EXPECT_EQ(rms_norm(mx::zeros({0, 63}, mx::bfloat16), w, kEps).shape(), (mx::Shape{0, 63}));
  EXPECT_THROW(rms_norm(x, normal({62}, mx::float32, 2), kEps), std::invalid_argument);
  EXPECT_THROW(add_norm(turned, x, w, kEps), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
