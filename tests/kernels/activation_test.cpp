#include "kernels/activation.h"

#include "kernels/elementwise_testing.h"
#include "kernels/gated.h"
#include "oracle/kernels_gated.h"

namespace lquant::kernels {
namespace {

using namespace testing;
using Arrays = std::vector<mx::array>;

// gated() is held to the oracle and to finite differences; times 1 it is the activation alone, to the last bit, and so is its gradient.
TEST(Activate, IsAGateTimesOne) {
  for (const auto activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::gelu_quick, Activation::relu,
                                Activation::relu2, Activation::sigmoid}) {
    for (auto dtype : kDtypes) {
      for (const mx::Shape& shape : {mx::Shape{1}, mx::Shape{3, 7}, mx::Shape{2, 5, 577}, mx::Shape{40000}}) {
        const auto x = normal(shape, dtype, 1, 4), cotangent = normal(shape, dtype, 2), one = mx::ones(shape, dtype);
        const auto alone = mx::vjp([&](const Arrays& in) { return Arrays{activate(in[0], activation)}; }, {x}, {cotangent});
        const auto with = mx::vjp([&](const Arrays& in) { return Arrays{gated(in[0], one, activation)}; }, {x}, {cotangent});
        EXPECT_EQ(alone.first[0].dtype(), dtype);
        EXPECT_TRUE(same_bytes(alone.first[0], with.first[0]));
        EXPECT_TRUE(same_bytes(alone.second[0], with.second[0]));
      }
    }
  }
}

// MLX's names: nn.gelu, nn.gelu_approx (GELU("precise" or "tanh")), nn.gelu_fast_approx, spelled as they are there, in f32.
TEST(Activate, MeansWhatMlxMeans) {
  const auto x = normal({1000}, mx::float32, 1, 3), one = mx::array(1.0f);
  const auto n = [](double v) { return mx::array(static_cast<float>(v)); };
  const auto cubic = mx::add(x, mx::multiply(n(0.044715), mx::power(x, n(3))));
  const auto exact = mx::divide(mx::multiply(x, mx::add(one, mx::erf(mx::divide(x, n(std::sqrt(2)))))), n(2));
  const auto precise = mx::multiply(mx::multiply(n(0.5), x), mx::add(one, mx::tanh(mx::multiply(n(std::sqrt(2 / M_PI)), cubic))));
  const auto fast = mx::multiply(x, mx::sigmoid(mx::multiply(n(1.702), x)));
  const auto close = [&](Activation activation, const mx::array& theirs) {
    // Left of 0 the sum with 1 leaves few digits: both are compared to some units of x itself.
    auto bound = doubles(x);
    for (auto& b : bound) b = 16 * kF32 * std::abs(b);
    expect_close(activate(x, activation), doubles(theirs), bound, "gelu");
  };
  close(Activation::gelu, exact);
  close(Activation::gelu_tanh, precise);
  close(Activation::gelu_quick, fast);
}

TEST(Activate, TakesViewsAndRefusesIntegers) {
  const auto x = normal({5, 63}, mx::bfloat16, 1), turned = mx::transpose(x);
  EXPECT_TRUE(same_bytes(activate(turned, Activation::gelu), mx::transpose(activate(x, Activation::gelu))));
  EXPECT_EQ(activate(mx::zeros({0, 3}), Activation::gelu).shape(), (mx::Shape{0, 3}));
  EXPECT_THROW(activate(mx::zeros({3}, mx::int32), Activation::gelu), std::invalid_argument);
}

double in_dtype(double v, mx::Dtype dtype) { return doubles(mx::astype(mx::array(static_cast<float>(v)), dtype))[0]; }

struct Parameters {
  XieluParameters given;
  oracle::Xielu factors;
};

Parameters parameters(mx::Dtype dtype) {
  const auto one = [&](float v) { return mx::astype(mx::array(v), dtype); };
  const XieluParameters given{one(0.55f), one(-0.3f), one(0.5f), one(-1e-3f)};  // an eps that bf16 and f16 tell from 0, and inputs from it
  const auto softplus = [&](const mx::array& alpha) { return in_dtype(std::log1p(std::exp(doubles(alpha)[0])), dtype); };
  const double beta = doubles(given.beta)[0];
  return {given, {softplus(given.alpha_p), in_dtype(beta + softplus(given.alpha_n), dtype), beta, doubles(given.eps)[0]}};
}

double logistic(const mx::array& x) { return 1 / (1 + std::exp(-doubles(x)[0])); }

TEST(Xielu, MatchesOracleAndFiniteDifferences) {
  constexpr double h = 1e-4;
  for (auto dtype : kDtypes) {
    for (auto of_parameters : {mx::float32, dtype}) {
      for (const mx::Shape& shape : {mx::Shape{1}, mx::Shape{7}, mx::Shape{3, 577}, mx::Shape{2, 20000}}) {
        const auto raw = normal(shape, dtype, 1, 2), cotangent = normal(shape, dtype, 2);
        // No input within a difference's step of 0 or eps, where the slope jumps.
        const auto x = mx::where(mx::less(mx::abs(raw), mx::array(0.01f, dtype)), mx::array(-0.25f, dtype), raw);
        const auto given = parameters(of_parameters);
        const auto v = doubles(x), c = doubles(cotangent);
        Values value, value_bound, dx, dx_bound;
        double to_p = 0, to_n = 0, p_terms = 0, n_terms = 0;
        for (std::size_t i = 0; i < v.size(); ++i) {
          const auto error = oracle::xielu_error(v[i], given.factors);
          const auto slope = oracle::xielu_gradient(v[i], given.factors);
          const double difference = (oracle::xielu(v[i] + h, given.factors) - oracle::xielu(v[i] - h, given.factors)) / (2 * h);
          ASSERT_NEAR(slope.x, difference, kDifference * 10);  // the oracle itself
          value.push_back(oracle::xielu(v[i], given.factors));
          value_bound.push_back(1.01 * error.value_units * kF32 + std::abs(value[i]) * unit(dtype) + tiny(dtype));
          dx.push_back(c[i] * difference);
          dx_bound.push_back((1.01 * error.slope_units * kF32 + 10 * kDifference) * std::abs(c[i]) + std::abs(dx[i]) * unit(dtype) + tiny(dtype));
          to_p += c[i] * slope.p;
          to_n += c[i] * slope.n;
          p_terms += std::abs(c[i] * slope.p);
          n_terms += v[i] > 0 ? 0 : std::abs(c[i]) * (1 + std::abs(v[i]));
        }
        const auto f = [&](const Arrays& in) { return Arrays{xielu(in[0], {in[1], in[2], given.given.beta, given.given.eps})}; };
        const auto got = mx::vjp(f, {x, given.given.alpha_p, given.given.alpha_n}, {cotangent});
        expect_close(got.first[0], value, value_bound, "xielu");
        expect_close(got.second[0], dx, dx_bound, "x");
        // Sums of so many numbers in any order, each term off by 12 units at most; softplus' slope by 8, and one rounding to the parameter's dtype.
        const double sums = (v.size() + 20.0) * kF32, to = unit(of_parameters);
        const double p = logistic(given.given.alpha_p), n = logistic(given.given.alpha_n);
        expect_close(got.second[1], {to_p * p}, {1.01 * sums * p_terms * p + std::abs(to_p * p) * to + tiny(of_parameters)}, "alpha_p");
        expect_close(got.second[2], {to_n * n}, {1.01 * sums * n_terms * n + std::abs(to_n * n) * to + tiny(of_parameters)}, "alpha_n");
        EXPECT_EQ(got.first[0].dtype(), dtype);
        EXPECT_EQ(got.second[1].dtype(), of_parameters);
      }
    }
  }
}

// mlx_lm's spelling in bf16, where each op rounds: of a sum of two terms, p·x² by three roundings and n·(expm1 − x) by two more on its terms.
TEST(Xielu, EqualsMlxLmInBf16) {
  const auto x = normal({64, 577}, mx::bfloat16, 1, 2);
  const auto p = parameters(mx::bfloat16);
  const auto zero = mx::array(0.0f, mx::bfloat16);
  const auto alpha_p = mx::logaddexp(p.given.alpha_p, zero), alpha_n = mx::add(p.given.beta, mx::logaddexp(p.given.alpha_n, zero));
  const auto line = mx::multiply(p.given.beta, x);
  const auto left = mx::multiply(mx::subtract(mx::expm1(mx::minimum(x, p.given.eps)), x), alpha_n);
  const auto theirs = mx::where(mx::greater(x, zero), mx::add(mx::multiply(alpha_p, mx::square(x)), line), mx::add(left, line));
  const auto v = doubles(x), want = doubles(theirs);
  Values bound;
  for (std::size_t i = 0; i < v.size(); ++i) {
    const auto& f = p.factors;
    const double curve = v[i] > 0 ? 3 * f.p * v[i] * v[i] : 3 * f.n * (std::abs(std::expm1(v[i])) + std::abs(v[i]));
    bound.push_back(0x1p-8 * (curve + std::abs(f.beta * v[i]) + 2 * std::abs(want[i])) * 1.02);
  }
  expect_close(xielu(x, p.given), want, bound, "xielu");
}

TEST(Xielu, GradientsOfOneInputAlone) {
  const auto x = normal({3, 577}, mx::float32, 1, 2), cotangent = normal({3, 577}, mx::float32, 2);
  const auto p = parameters(mx::float32).given;
  const auto gradients = [&](const std::function<mx::array(const Arrays&)>& f, const Arrays& of) {
    return mx::vjp([&](const Arrays& in) { return Arrays{f(in)}; }, of, {cotangent}).second;
  };
  const auto all = gradients([&](const Arrays& in) { return xielu(in[0], {in[1], in[2], p.beta, p.eps}); }, {x, p.alpha_p, p.alpha_n});
  const auto of_n = gradients([&](const Arrays& in) { return xielu(x, {p.alpha_p, in[0], p.beta, p.eps}); }, {p.alpha_n});
  const auto turned = gradients([&](const Arrays& in) { return xielu(in[1], {in[0], p.alpha_n, p.beta, p.eps}); }, {p.alpha_p, x});
  EXPECT_TRUE(same_bytes(of_n[0], all[2]));
  EXPECT_TRUE(same_bytes(turned[0], all[1]));
  EXPECT_TRUE(same_bytes(turned[1], all[0]));
  for (const auto& none : gradients([&](const Arrays& in) { return xielu(x, {p.alpha_p, p.alpha_n, in[0], in[1]}); }, {p.beta, p.eps}))
    EXPECT_EQ(doubles(none)[0], 0);
}

TEST(Xielu, DoesNotDependOnThreads) {
  const auto x = normal({301, 577}, mx::bfloat16, 1, 2);
  const auto p = parameters(mx::float32).given;
  expect_thread_independent([&] {
    auto both = mx::vjp([&](const Arrays& in) { return Arrays{xielu(in[0], {in[1], in[2], p.beta, p.eps})}; }, {x, p.alpha_p, p.alpha_n}, {x});
    both.second.push_back(both.first[0]);
    return both.second;
  });
}

TEST(Xielu, RefusesWhatDisagrees) {
  const auto x = normal({7}, mx::float32, 1);
  auto p = parameters(mx::float32).given;
  EXPECT_THROW(xielu(mx::zeros({3}, mx::int32), p), std::invalid_argument);
  EXPECT_EQ(xielu(mx::zeros({0, 3}), p).shape(), (mx::Shape{0, 3}));
  p.alpha_n = mx::zeros({2});
  EXPECT_THROW(xielu(x, p), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
