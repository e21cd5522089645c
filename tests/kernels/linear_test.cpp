#include "kernels/linear.h"

#include <gtest/gtest.h>
#include <mlx/graph_utils.h>
#include <mlx/mlx.h>

#include <cmath>
#include <sstream>

#include "kernels/primitive.h"
#include "oracle/kernels_linear.h"

namespace lquant::kernels {
namespace {

using namespace oracle::linear;
using Arrays = std::vector<mx::array>;

mx::array normal(const mx::Shape& shape, mx::Dtype dtype, int seed) {
  return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), dtype);
}

double unit(mx::Dtype dtype) { return dtype == mx::float32 ? 0 : std::ldexp(1, dtype == mx::bfloat16 ? -8 : -11); }

/// |got − want| ≤ (length + 8) · 2^-24 · size for f32 sums of `length` terms whose absolute sum is `size`; a bf16 result rounds
/// once more, by 2^-8 of itself, an f16 one by 2^-11, or 2^-25 where that is more.
void expect_close(const mx::array& got, const Matrix& want, const Matrix& size, std::int64_t length) {
  const auto values = matrix(got);
  ASSERT_EQ(values.values.size(), want.values.size());
  const double f32 = (length + 8) * std::ldexp(1, -24), half = unit(got.dtype()), least = got.dtype() == mx::float16 ? std::ldexp(1, -25) : 1e-30;
  for (std::size_t i = 0; i < want.values.size(); ++i) {
    EXPECT_LE(std::abs(values.values[i] - want.values[i]), f32 * size.values[i] * (1 + half) + half * std::abs(want.values[i]) + least);
  }
}

void expect_product(const mx::array& got, const Matrix& a, const Matrix& b) {
  expect_close(got, multiply(a, b), multiply(absolute(a), absolute(b)), a.columns);
}

Matrix ones(std::int64_t columns) { return {1, columns, std::vector<double>(columns, 1.0)}; }

class Linear : public testing::TestWithParam<std::pair<mx::Dtype, bool>> {
 protected:
  void SetUp() override {
    mx::set_default_device(mx::Device::cpu);
    if (GetParam().second) mlx_.emplace();
  }
  mx::Dtype dtype() const { return GetParam().first; }
  /// MLX's own ops round 16 bits between product and bias, product and residual, product and product: the exact bounds are for ours.
  bool exact() const { return dtype() == mx::float32 || cpu_kernels(); }
  /// A weight's gradient, f32, as it was rounded on the way: the cast only widens the bound.
  mx::array as_rounded(const mx::array& dw) const { return exact() ? dw : mx::astype(dw, dtype()); }

 private:
  std::optional<MlxOpsOnly> mlx_;
};

INSTANTIATE_TEST_SUITE_P(Paths, Linear,
                         testing::Values(std::pair{mx::float32, false}, std::pair{mx::bfloat16, false}, std::pair{mx::float16, false},
                                         std::pair{mx::float32, true}, std::pair{mx::bfloat16, true}, std::pair{mx::float16, true}),
                         [](const auto& info) {
                           const auto dtype = info.param.first;
                           return std::string(dtype == mx::float32 ? "f32" : dtype == mx::bfloat16 ? "bf16" : "f16") +
                                  (info.param.second ? "Mlx" : "Cpu");
                         });

TEST_P(Linear, ForwardAndEveryGradientOfOneWeight) {
  const struct {
    mx::Shape x;
    int n;
  } cases[] = {{{1, 7}, 3}, {{2, 5, 70}, 33}, {{7}, 3}, {{150, 64}, 1}};
  for (const auto& [shape, n] : cases) {
    const auto x = normal(shape, dtype(), 1), w = normal({n, shape.back()}, dtype(), 2);
    auto y_shape = shape;
    y_shape.back() = n;
    const auto dy = normal(y_shape, dtype(), 3);
    auto function = [](const Arrays& in) { return Arrays{linear(in[0], {in[1]})}; };
    const auto [y, gradients] = mx::vjp(function, {x, w}, {dy});
    EXPECT_EQ(y[0].shape(), y_shape);
    EXPECT_EQ(y[0].dtype(), dtype());
    EXPECT_EQ(gradients[0].dtype(), dtype());
    EXPECT_EQ(gradients[1].dtype(), mx::float32);
    EXPECT_EQ(gradients[0].shape(), shape);
    expect_product(y[0], matrix(x), transposed(matrix(w)));
    expect_product(gradients[0], matrix(dy), matrix(w));
    expect_product(as_rounded(gradients[1]), transposed(matrix(dy)), matrix(x));
  }
}

TEST_P(Linear, BiasAndResidualJoinTheProductBeforeItIsRounded) {
  if (!exact()) GTEST_SKIP();
  const auto x = normal({2, 5, 70}, dtype(), 1), w = normal({33, 70}, dtype(), 2), b = normal({33}, dtype(), 3), r = normal({2, 5, 33}, dtype(), 4),
             dy = normal({2, 5, 33}, dtype(), 5);
  auto function = [](const Arrays& in) { return Arrays{linear(in[0], {in[1], in[2]}, in[3])}; };
  const auto [y, gradients] = mx::vjp(function, {x, w, b, r}, {dy});
  const auto mx_ = matrix(x), mw = transposed(matrix(w));
  Matrix bias{10, 33, {}};
  for (int i = 0; i < 10; ++i) {
    const auto row = matrix(b).values;
    bias.values.insert(bias.values.end(), row.begin(), row.end());
  }
  const auto terms = add(bias, matrix(r)), sizes = add(absolute(bias), absolute(matrix(r)));
  expect_close(y[0], add(multiply(mx_, mw), terms), add(multiply(absolute(mx_), absolute(mw)), sizes), 72);
  expect_product(gradients[2], ones(10), matrix(dy));
  EXPECT_TRUE(mx::array_equal(gradients[3], dy).item<bool>());
  expect_product(gradients[0], matrix(dy), matrix(w));
}

TEST_P(Linear, SeveralWeightsAddTheirShareOfTheInputsGradient) {
  if (!exact()) GTEST_SKIP();
  const auto x = normal({9, 40}, dtype(), 1);
  const int widths[] = {33, 8, 17};
  Arrays inputs{x}, cotangents;
  for (int n : widths) {
    inputs.push_back(normal({n, 40}, dtype(), n));
    cotangents.push_back(normal({9, n}, dtype(), 100 + n));
  }
  inputs.push_back(normal({8}, dtype(), 7));
  auto function = [](const Arrays& in) { return linears(in[0], {{in[1]}, {in[2], in[4]}, {in[3]}}); };
  const auto [y, gradients] = mx::vjp(function, inputs, cotangents);
  ASSERT_EQ(y.size(), 3u);
  Matrix sum{9, 40, std::vector<double>(360)}, size = sum;
  for (int i = 0; i < 3; ++i) {
    const auto dy = matrix(cotangents[i]), w = matrix(inputs[i + 1]);
    sum = add(sum, multiply(dy, w));
    size = add(size, multiply(absolute(dy), absolute(w)));
    expect_product(gradients[i + 1], transposed(dy), matrix(x));
  }
  expect_close(gradients[0], sum, size, 58);  // one rounding to bf16, after all three
  expect_product(gradients[4], ones(9), matrix(cotangents[1]));
  expect_product(y[2], matrix(x), transposed(matrix(inputs[3])));
}

TEST_P(Linear, UnusedOutputsAddNothing) {
  const auto x = normal({9, 40}, dtype(), 1), a = normal({33, 40}, dtype(), 2), b = normal({8, 40}, dtype(), 3), dy = normal({9, 33}, dtype(), 4);
  auto function = [](const Arrays& in) { return Arrays{linears(in[0], {{in[1]}, {in[2]}})[0]}; };
  const auto gradients = mx::vjp(function, {x, a, b}, {dy}).second;
  expect_product(gradients[0], matrix(dy), matrix(a));
  EXPECT_EQ(mx::sum(mx::abs(gradients[2])).item<float>(), 0);
}

TEST_P(Linear, GradientsAgreeWithFiniteDifferences) {
  if (dtype() != mx::float32) GTEST_SKIP();
  const auto x = normal({4, 7}, dtype(), 1), w = normal({3, 7}, dtype(), 2), b = normal({3}, dtype(), 3);
  auto loss = [](const Arrays& in) { return mx::sum(mx::square(linear(in[0], {in[1], in[2]}))); };
  const Arrays at{x, w, b};
  const auto gradients = mx::grad(loss, {0, 1, 2})(at);
  // The loss is quadratic, so central differences are exact but for rounding: values near 300 rounded to 2^-24·300 ≈ 2e-5, a few
  // times over, against a step of 2·2^-4.
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < static_cast<int>(at[i].size()); ++j) {
      const auto step = mx::reshape(mx::astype(mx::equal(mx::arange(static_cast<int>(at[i].size())), mx::array(j)), mx::float32), at[i].shape());
      auto up = at, down = at;
      up[i] = mx::add(at[i], mx::multiply(step, mx::array(0.0625f)));
      down[i] = mx::subtract(at[i], mx::multiply(step, mx::array(0.0625f)));
      const double slope = (loss(up).item<float>() - loss(down).item<float>()) / 0.125;
      EXPECT_NEAR(matrix(gradients[i]).values[j], slope, 8 * 2e-5 / 0.125);
    }
  }
}

TEST_P(Linear, FrozenWeightsCostNothing) {
  if (!cpu_kernels() || dtype() == mx::float16) GTEST_SKIP() << "f32 and bf16 on the CPU's kernels have ops of these names";
  const auto x = normal({9, 40}, dtype(), 1), a = normal({33, 40}, dtype(), 2), b = normal({8, 40}, dtype(), 3);
  auto names = [&](const std::vector<int>& argnums) {
    auto loss = [](const Arrays& in) {
      const auto y = linears(in[0], {{in[1]}, {in[2]}});
      return mx::add(mx::sum(y[0]), mx::sum(y[1]));
    };
    std::ostringstream graph;
    mx::export_to_dot(graph, mx::grad(loss, argnums)({x, a, b}));
    return graph.str();
  };
  EXPECT_EQ(names({0}).find("linears_dw"), std::string::npos);
  EXPECT_NE(names({0}).find("linears_dx"), std::string::npos);
  EXPECT_EQ(names({1}).find("linears_dx"), std::string::npos);
  EXPECT_NE(names({1}).find("linears_dw"), std::string::npos);
}

TEST_P(Linear, GroupedRowsMeetTheirExperts) {
  // Expert 1 has no rows, expert 2 many (the product that takes all cores), the last ones few.
  const std::vector<int> at{0, 5, 5, 525, 526, 560};
  const int experts = 5, rows_all = 560, n = 17, k = 24;
  const auto x = normal({rows_all, k}, dtype(), 1), w = normal({experts, n, k}, dtype(), 2), b = normal({experts, n}, dtype(), 3),
             dy = normal({rows_all, n}, dtype(), 4), offsets = mx::array(at.data(), {experts + 1}, mx::int32);
  auto function = [&](const Arrays& in) { return Arrays{grouped_linear(in[0], in[1], std::nullopt, offsets)}; };
  const auto [y, gradients] = mx::vjp(function, {x, w}, {dy});
  EXPECT_EQ(gradients[1].dtype(), mx::float32);
  auto with_bias = [&](const Arrays& in) { return Arrays{grouped_linear(x, w, in[0], offsets)}; };
  const auto [z, bias_gradients] = mx::vjp(with_bias, {b}, {dy});
  const auto shifted = mx::subtract(mx::astype(z[0], mx::float32), mx::astype(y[0], mx::float32));
  mx::eval(shifted);
  for (int e = 0; e < experts; ++e) {
    const auto xe = rows(matrix(x), at[e], at[e + 1]), we = rows(matrix(w), e * n, e * n + n), de = rows(matrix(dy), at[e], at[e + 1]);
    expect_product(mx::slice(y[0], {at[e], 0}, {at[e + 1], n}), xe, transposed(we));
    expect_product(mx::slice(gradients[0], {at[e], 0}, {at[e + 1], k}), de, we);
    const auto dw = mx::slice(gradients[1], {e, 0, 0}, {e + 1, n, k});
    expect_product(as_rounded(dw), transposed(de), xe);
    // The bias moved every row of the expert by itself: two results of size up to 30, each off by its dtype's unit (or some of f32's).
    for (int i = at[e]; i < at[e + 1]; ++i) {
      for (int j = 0; j < n; ++j) {
        EXPECT_NEAR(shifted.data<float>()[i * n + j], matrix(b)(e, j), 60 * std::max(unit(dtype()), std::ldexp(1, -20)));
      }
    }
    if (exact()) expect_product(mx::slice(bias_gradients[0], {e, 0}, {e + 1, n}), ones(de.rows), de);
  }
}

TEST_P(Linear, RefusesWhatDoesNotFit) {
  const auto x = normal({4, 7}, dtype(), 1), w = normal({3, 8}, dtype(), 2), right = normal({3, 7}, dtype(), 2);
  EXPECT_THROW(linear(x, {w}), std::invalid_argument);
  EXPECT_THROW(linear(x, {mx::astype(right, dtype() == mx::float16 ? mx::bfloat16 : mx::float16)}), std::invalid_argument);
  EXPECT_THROW(linear(mx::astype(x, mx::int32), {mx::astype(right, mx::int32)}), std::invalid_argument);
  EXPECT_THROW(linear(x, {right, normal({4}, dtype(), 1)}), std::invalid_argument);
  EXPECT_THROW(linear(x, {right}, x), std::invalid_argument);
  EXPECT_THROW(linears(x, {}), std::invalid_argument);
  const auto stack = normal({2, 3, 7}, dtype(), 1);
  EXPECT_THROW(grouped_linear(x, stack, std::nullopt, mx::array({0, 4})), std::invalid_argument);
  if (cpu_kernels()) {  // as the products are made
    EXPECT_THROW(mx::eval(grouped_linear(x, stack, std::nullopt, mx::array({0, 5, 4}))), std::invalid_argument);
    EXPECT_THROW(mx::eval(grouped_linear(x, stack, std::nullopt, mx::array({0, 2, 3}))), std::invalid_argument);
  }
}

}  // namespace
}  // namespace lquant::kernels
