#include "kernels/gated.h"

#include <algorithm>

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_gated.h"

namespace lquant::kernels {
namespace {

using namespace testing;

const std::vector<Activation> kAll = {Activation::silu, Activation::gelu,  Activation::gelu_tanh, Activation::gelu_quick,
                                      Activation::relu, Activation::relu2, Activation::sigmoid};

/// A sigmoid below 2^−126 may come out as 0, and with it what it multiplies: the gate and `other`. f16's smallest number is much larger.
double underflow(mx::Dtype dtype, double gate, double other) {
  return dtype == mx::float16 ? 0x1p-24 : 0x1p-126 * (1 + std::abs(gate)) * (1 + std::abs(other));
}

class Gated : public ::testing::TestWithParam<std::tuple<Activation, int, int>> {
 protected:
  Activation activation = std::get<0>(GetParam());
  mx::Shape shape{std::get<1>(GetParam()), std::get<2>(GetParam())};
};

INSTANTIATE_TEST_SUITE_P(Sizes, Gated, ::testing::Combine(::testing::ValuesIn(kAll), ::testing::Values(1, 3), ::testing::Values(1, 7, 63, 65, 576)));

TEST_P(Gated, ForwardMatchesOracle) {
  for (auto dtype : kDtypes) {
    const auto gate = normal(shape, dtype, 1, 4), up = normal(shape, dtype, 2);  // gates to ±16 reach both tails
    const auto g = doubles(gate), v = doubles(up);
    Values want, bound;
    for (std::size_t i = 0; i < g.size(); ++i) {
      const auto error = oracle::activation_error(g[i], activation);
      want.push_back(oracle::activate(g[i], activation) * v[i]);
      // MLX's exponential takes multiples of ln 2 from its argument in f32: the argument's own rounding, which is |g| units of the result.
      const bool one_sigmoid = activation == Activation::silu || activation == Activation::gelu_quick || activation == Activation::sigmoid;
      const double exponential = on_mlx(dtype) && one_sigmoid ? 1.702 * std::abs(g[i]) : 0;
      const double units = error.value_units + (1 + exponential) * std::abs(oracle::activate(g[i], activation));
      const double f32 = (units * kF32 + error.phi * std::abs(g[i])) * std::abs(v[i]);
      bound.push_back(f32 * 1.01 + std::abs(want[i]) * unit(dtype) + underflow(dtype, g[i], v[i]));
    }
    const auto separate = gated(gate, up, activation);
    expect_close(separate, want, bound, "gated");
    EXPECT_TRUE(same_bytes(gated_fused(mx::concatenate({gate, up}, 1), activation), separate));
  }
}

TEST_P(Gated, GradientsMatchFiniteDifferences) {
  for (auto dtype : kDtypes) {
    const auto raw = normal(shape, dtype, 3, 3);
    // No gate within a difference's step of relu's kink.
    const auto gate = mx::where(mx::less(mx::abs(raw), mx::array(0.01f, dtype)), mx::array(0.25f, dtype), raw);
    const auto up = normal(shape, dtype, 4), cotangent = normal(shape, dtype, 5);
    const auto g = doubles(gate), v = doubles(up), c = doubles(cotangent);
    Values dgate, dup, gate_bound, up_bound;
    for (std::size_t i = 0; i < g.size(); ++i) {
      constexpr double h = 1e-4;
      const double slope = (oracle::activate(g[i] + h, activation) - oracle::activate(g[i] - h, activation)) / (2 * h);
      const auto error = oracle::activation_error(g[i], activation);
      dgate.push_back(slope * v[i] * c[i]);
      dup.push_back(oracle::activate(g[i], activation) * c[i]);
      // phi itself is approximated, and on MLX's side erf and its gradient likewise; two more products round.
      const double slope_error = (error.slope_units + 2 * std::abs(slope)) * kF32 + error.phi + kDifference;
      gate_bound.push_back(slope_error * std::abs(v[i] * c[i]) * 1.01 + std::abs(dgate[i]) * unit(dtype) + underflow(dtype, g[i], v[i] * c[i]));
      const double value_error = (error.value_units + std::abs(oracle::activate(g[i], activation))) * kF32 + error.phi * std::abs(g[i]);
      up_bound.push_back(value_error * std::abs(c[i]) * 1.01 + std::abs(dup[i]) * unit(dtype) + underflow(dtype, g[i], c[i]));
    }
    const auto both =
        mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{gated(in[0], in[1], activation)}; }, {gate, up}, {cotangent}).second;
    expect_close(both[0], dgate, gate_bound, "gate");
    expect_close(both[1], dup, up_bound, "up");
    const auto only_up =
        mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{gated(gate, in[0], activation)}; }, {up}, {cotangent}).second;
    EXPECT_TRUE(same_bytes(only_up[0], both[1]));
    const auto swapped =
        mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{gated(in[1], in[0], activation)}; }, {up, gate}, {cotangent});
    EXPECT_TRUE(same_bytes(swapped.second[0], both[1]));
    EXPECT_TRUE(same_bytes(swapped.second[1], both[0]));
    const auto fused = mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{gated_fused(in[0], activation)}; },
                               {mx::concatenate({gate, up}, 1)}, {cotangent});
    EXPECT_TRUE(same_bytes(fused.second[0], mx::concatenate(both, 1)));
  }
}

double clamped(double gate, double up, const ClampedGate& c) {
  const double limit = c.limit, inside = std::min(gate, limit);
  const double a = c.limits_activated ? std::min(oracle::swish(gate, c.alpha), limit) : oracle::swish(inside, c.alpha);
  return a * (std::clamp(up, -limit, limit) + c.shift);
}

TEST(ClampedGated, MatchesOracleAndFiniteDifferences) {
  constexpr double h = 1e-4;
  // Either order of limit and activation; a limit that nothing reaches; none.
  for (const auto& c : {ClampedGate{1.702f, 2.3033f, 1, false}, ClampedGate{1, 2.3033f, 0, true}, ClampedGate{1, 2.3033f, 0, false},
                        ClampedGate{1.702f, 1e4f, 1, true}, ClampedGate{}}) {
    for (auto dtype : kDtypes) {
      const mx::Shape shape{5, 401};
      const auto raw = normal(shape, dtype, 1, 3), up = normal(shape, dtype, 2, 2), cotangent = normal(shape, dtype, 3);
      // No gate, nor what becomes of it, within a difference's step of the limit.
      const auto near = [&](const mx::array& x) { return mx::less(mx::abs(mx::subtract(x, mx::array(c.limit))), mx::array(0.001f)); };
      const auto close = mx::logical_or(near(raw), near(mx::multiply(raw, mx::sigmoid(mx::multiply(mx::array(c.alpha), raw)))));
      const auto gate = mx::where(close, mx::array(0.25f, dtype), raw);
      const auto g = doubles(gate), u = doubles(up), e = doubles(cotangent);
      Values value, value_bound, dgate, dgate_bound, dup, dup_bound;
      for (std::size_t i = 0; i < g.size(); ++i) {
        const auto error = oracle::swish_error(g[i], c.alpha);
        const double a = clamped(g[i], 0, {c.alpha, c.limit, 1, c.limits_activated}), inner = std::abs(a) + error.value_units;
        const double shifted = std::clamp<double>(u[i], -c.limit, c.limit) + c.shift, spread = std::min<double>(std::abs(u[i]), c.limit) + c.shift;
        // MLX's exponential: see Gated. The sum with the shift and the product round once each.
        const double exponential = on_mlx(dtype) ? 1.702 * std::abs(g[i] * a) : 0;
        value.push_back(a * shifted);
        value_bound.push_back(1.01 * (inner + exponential + 2 * std::abs(a)) * spread * kF32 + std::abs(value[i]) * unit(dtype) +
                              underflow(dtype, g[i], spread));
        const double slope = (clamped(g[i] + h, u[i], c) - clamped(g[i] - h, u[i], c)) / (2 * h);
        dgate.push_back(e[i] * slope);
        dgate_bound.push_back(((1.01 * (error.slope_units + exponential + 4) * kF32 + kDifference) * std::abs(e[i]) * spread) +
                              std::abs(dgate[i]) * unit(dtype) + underflow(dtype, g[i], e[i] * spread));
        dup.push_back(std::abs(u[i]) < c.limit ? e[i] * a : 0);
        dup_bound.push_back(1.01 * (inner + exponential) * std::abs(e[i]) * kF32 + std::abs(dup[i]) * unit(dtype) + underflow(dtype, g[i], e[i]));
      }
      expect_close(clamped_gated(gate, up, c), value, value_bound, "clamped_gated");
      const auto both =
          mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{clamped_gated(in[0], in[1], c)}; }, {gate, up}, {cotangent}).second;
      expect_close(both[0], dgate, dgate_bound, "gate");
      expect_close(both[1], dup, dup_bound, "up");
      const auto only_up =
          mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{clamped_gated(gate, in[0], c)}; }, {up}, {cotangent}).second;
      EXPECT_TRUE(same_bytes(only_up[0], both[1]));
    }
  }
}

TEST(ClampedGated, WithoutLimitsIsSilu) {
  const auto gate = normal({3, 577}, mx::bfloat16, 1, 3), up = normal({3, 577}, mx::bfloat16, 2);
  EXPECT_TRUE(same_bytes(clamped_gated(gate, up, {}), gated(gate, up, Activation::silu)));
}

TEST(ClampedGated, EndsOfTheRange) {
  const float big = 3e38f, nan = std::nanf("");
  for (const bool limits_activated : {false, true}) {
    const ClampedGate c{1, 7, 1, limits_activated};
    const auto y = doubles(clamped_gated(mx::array({-big, big, nan, 1000.0f}, {4}), mx::array({1.0f, -big, 1.0f, nan}, {4}), c));
    const double most = limits_activated ? 7 : oracle::swish(7, 1);
    EXPECT_EQ(y[0], 0);
    EXPECT_NEAR(y[1], -6 * most, 6 * 16 * most * kF32);
    EXPECT_TRUE(std::isnan(y[2]) && std::isnan(y[3]));
  }
}

TEST(SituGated, MatchesDefinitionAndFiniteDifferences) {
  constexpr double h = 1e-4;
  for (const auto& c : {Situ{}, Situ{4, 0}, Situ{4, 2.5f}}) {
    const auto a = [&](double gate) { return c.beta * std::tanh(gate / c.beta) / (1 + std::exp(-gate)); };
    const auto u = [&](double up) { return c.linear > 0 ? c.linear * std::tanh(up / c.linear) : up; };
    for (auto dtype : kDtypes) {
      const mx::Shape shape{5, 401};
      const auto gate = normal(shape, dtype, 1, 3), up = normal(shape, dtype, 2, 2), cotangent = normal(shape, dtype, 3);
      const auto g = doubles(gate), v = doubles(up), e = doubles(cotangent);
      Values value, bound, dgate, dgate_bound, dup, dup_bound;
      for (std::size_t i = 0; i < g.size(); ++i) {
        // Some ten operations, of which an exponential and a tanh may be off by four units, on factors of at most beta and |up|; slopes are at
        // most 2.
        const double units = 32 * kF32, most = c.beta * (1 + std::abs(v[i])), slopes = 2 * (1 + std::abs(v[i])) * std::abs(e[i]);
        value.push_back(a(g[i]) * u(v[i]));
        bound.push_back(units * most + std::abs(value[i]) * unit(dtype) + underflow(dtype, g[i], v[i]));
        dgate.push_back((a(g[i] + h) - a(g[i] - h)) / (2 * h) * u(v[i]) * e[i]);
        dgate_bound.push_back((units + kDifference) * slopes + std::abs(dgate[i]) * unit(dtype) + underflow(dtype, g[i], v[i] * e[i]));
        dup.push_back((u(v[i] + h) - u(v[i] - h)) / (2 * h) * a(g[i]) * e[i]);
        dup_bound.push_back((units + kDifference) * c.beta * slopes + std::abs(dup[i]) * unit(dtype) + underflow(dtype, g[i], e[i]));
      }
      expect_close(situ_gated(gate, up, c), value, bound, "situ_gated");
      const auto both =
          mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{situ_gated(in[0], in[1], c)}; }, {gate, up}, {cotangent}).second;
      expect_close(both[0], dgate, dgate_bound, "gate");
      expect_close(both[1], dup, dup_bound, "up");
    }
  }
  EXPECT_THROW(situ_gated(mx::ones({2}), mx::ones({3}), {}), std::invalid_argument);
  EXPECT_THROW(situ_gated(mx::ones({2}), mx::ones({2}), {.beta = 0}), std::invalid_argument);
}

// One tensor as gate and up: both gradients reach it.
TEST(GatedGradient, OfOneTensorTwice) {
  const auto x = mx::array({2.0f, -3.0f}, {2}), one = mx::ones({2}, mx::float32);
  const auto got = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{gated(in[0], in[0], Activation::relu)}; }, {x}, {one}).second[0];
  EXPECT_TRUE(same_bytes(got, mx::array({4.0f, 0.0f}, {2})));
}

TEST(Gated, EndsOfTheRange) {
  const float big = 3e38f, nan = std::nanf("");
  for (auto activation : kAll) {
    const auto x = mx::array({-big, -1000.0f, -100.0f, nan, 1000.0f}, {5}), one = mx::ones({5}, mx::float32);
    const auto y = doubles(gated(x, one, activation));
    for (int i : {0, 1, 2}) EXPECT_EQ(y[i], 0) << i;
    EXPECT_TRUE(std::isnan(y[3]));
    EXPECT_EQ(y[4], activation == Activation::relu2 ? 1e6 : activation == Activation::sigmoid ? 1 : 1000);
    const auto slope = doubles(mx::vjp([&](const mx::array& g) { return gated(g, one, activation); }, x, one).second);
    for (int i : {1, 2}) EXPECT_EQ(slope[i], 0) << i;
    EXPECT_EQ(slope[4], activation == Activation::relu2 ? 2000 : activation == Activation::sigmoid ? 0 : 1);
  }
}

TEST(Gated, DoesNotDependOnThreads) {
  const auto gate = normal({301, 577}, mx::bfloat16, 1), up = normal({301, 577}, mx::bfloat16, 2);
  expect_thread_independent([&] {
    return mx::vjp([](const std::vector<mx::array>& in) { return std::vector{gated(in[0], in[1], Activation::silu)}; }, {gate, up}, {gate}).second;
  });
}

TEST(Gated, RefusesWhatDisagrees) {
  const auto x = normal({2, 7}, mx::float32, 1);
  EXPECT_THROW(gated(x, mx::astype(x, mx::bfloat16), Activation::silu), std::invalid_argument);
  EXPECT_THROW(gated_fused(x, Activation::silu), std::invalid_argument);
  EXPECT_THROW(clamped_gated(x, mx::astype(x, mx::bfloat16), {}), std::invalid_argument);
  EXPECT_THROW(clamped_gated(x, x, {.limit = 0}), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
