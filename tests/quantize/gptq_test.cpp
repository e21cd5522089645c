#include "quantize/gptq.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "codec/feedback.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "kernels/moments.h"

namespace lquant::quantize {
namespace {

using calibration::Hessian;

/// Inputs with strong directions in common, as hidden states have.
mx::array inputs(int tokens, int k, unsigned seed) {
  const auto common = mx::random::normal({4, k}, mx::float32, mx::random::key(1000));
  return mx::add(mx::random::normal({tokens, k}, mx::float32, mx::random::key(seed)),
                 mx::matmul(mx::random::normal({tokens, 4}, mx::float32, mx::random::key(seed + 1)), common));
}

Hessian hessian_of(const mx::array& x) { return {kernels::gram(x), std::nullopt, static_cast<double>(x.shape(0))}; }

mx::array weights(int n, int k, unsigned seed, mx::Dtype dtype = mx::float32) {
  return mx::astype(mx::multiply(mx::random::normal({n, k}, mx::float32, mx::random::key(seed)), mx::array(0.1f)), dtype);
}

/// Mean squared output error of what `packed` stands for, on inputs x.
double output_error(const mx::array& w, const codec::Packed& packed, const codec::Format& format, const mx::array& x) {
  const auto e = mx::subtract(mx::astype(w, mx::float32), codec::dequantize(packed, format, mx::float32));
  return mx::sum(mx::square(mx::matmul(x, mx::transpose(e)))).item<float>() / x.shape(0);
}

const codec::Format kFormat{codec::Mode::affine, 3, 32};

GptqResult quantized(const mx::array& w, const Hessian& h, const codec::Format& format = kFormat, const GptqOptions& options = {},
                     const std::string& path = "w") {
  return gptq(path, w, FactoredHessian(path, h, format.group_size, options), format, options);
}

class GptqOrders : public ::testing::TestWithParam<ActOrder> {};

TEST_P(GptqOrders, LowersTheOutputErrorOfRangeSearch) {
  const auto w = weights(40, 128, 1, mx::bfloat16), x = inputs(512, 128, 2), other = inputs(512, 128, 50);
  GptqOptions options;
  options.act_order = GetParam();
  options.sweeps = 0;
  const auto h = hessian_of(x);
  const auto done = quantized(w, h, kFormat, options);
  EXPECT_EQ(done.packed.scales.dtype(), mx::bfloat16);
  const auto searched = codec::range_search(w, kFormat, mx::diagonal(h.moment)).packed;
  EXPECT_LT(output_error(w, done.packed, kFormat, x), output_error(w, searched, kFormat, x));
  EXPECT_LT(output_error(w, done.packed, kFormat, other), output_error(w, searched, kFormat, other));
  EXPECT_LT(done.error, done.plain_error);
  EXPECT_EQ(done.damp, options.damp);
  // The reported error has the damping's share of Σ e² on top; both are sums of the same products.
  EXPECT_NEAR(done.error, output_error(w, done.packed, kFormat, x), 0.1 * done.error);
}

INSTANTIATE_TEST_SUITE_P(All, GptqOrders, ::testing::Values(ActOrder::off, ActOrder::fixed, ActOrder::gar));

TEST(Gptq, SweepsAndRangesHelp) {
  const auto w = weights(40, 128, 3), x = inputs(512, 128, 4);
  GptqOptions plain, searched, refined;
  plain.range_search = false;
  plain.sweeps = searched.sweeps = 0;
  refined.sweeps = 3;
  const auto error = [&](const GptqOptions& o) { return quantized(w, hessian_of(x), kFormat, o).error; };
  EXPECT_LT(error(searched), error(plain));
  EXPECT_LT(error(refined), error(searched));
}

TEST(Gptq, InputsThatAreAlwaysZero) {
  const auto w = weights(8, 64, 5);
  const auto done = quantized(w, {mx::zeros({64, 64}), std::nullopt, 100});
  const auto plain = codec::quantize(w, kFormat);
  EXPECT_LE(output_error(w, done.packed, kFormat, mx::eye(64)), output_error(w, plain, kFormat, mx::eye(64)));

  // Half of the inputs dead: the living half is solved, the dead one stays near its weights.
  const auto alive = mx::concatenate({mx::ones({1, 32}), mx::zeros({1, 32})}, 1), x = mx::multiply(inputs(256, 64, 6), alive);
  GptqOptions options;
  options.sweeps = 0;
  const auto half = quantized(w, hessian_of(x), kFormat, options);
  EXPECT_LT(output_error(w, half.packed, kFormat, x), output_error(w, plain, kFormat, x));
  const auto dead = mx::subtract(mx::array(1.0f), alive);
  // One step of three bits over a range of at most six standard deviations of 0.1, halved by rounding.
  const auto off = mx::abs(mx::multiply(mx::subtract(w, codec::dequantize(half.packed, kFormat, mx::float32)), dead));
  EXPECT_LT(mx::max(off).item<float>(), 0.6f / 7);
}

TEST(Gptq, OneToken) {
  const auto w = weights(8, 64, 7), x = inputs(1, 64, 8);
  const auto done = quantized(w, hessian_of(x));
  EXPECT_LT(output_error(w, done.packed, kFormat, x), output_error(w, codec::quantize(w, kFormat), kFormat, x));
}

TEST(Gptq, DampingGrowsUntilTheHessianFactors) {
  // Rank one and no damping to speak of: f32 cannot factor it.
  const auto row = inputs(1, 64, 9);
  GptqOptions options;
  options.damp = 1e-12;
  const auto done = quantized(weights(8, 64, 10), {mx::matmul(mx::transpose(row), row), std::nullopt, 1}, kFormat, options);
  EXPECT_GT(done.damp, options.damp);
  EXPECT_LE(done.error, done.plain_error);
}

TEST(Gptq, NeverWorseThanPlainRounding) {
  for (unsigned seed = 0; seed < 6; ++seed)
    for (int bits : {2, 4, 8}) {
      const codec::Format format{codec::Mode::affine, bits, 64};
      const auto done = quantized(weights(4, 128, seed), hessian_of(inputs(8, 128, seed + 20)), format);
      EXPECT_LE(done.error, done.plain_error);
    }
}

TEST(Gptq, RefusesWhatIsNotFinite) {
  const auto refused = [](const mx::array& w, const mx::array& moment, const char* words) {
    try {
      quantized(w, {moment, std::nullopt, 1}, kFormat, {}, "model.layers.1.mlp.up_proj");
      ADD_FAILURE() << "was not refused";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("model.layers.1.mlp.up_proj"), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
    }
  };
  const auto nan = mx::array(std::numeric_limits<float>::quiet_NaN()), w = weights(4, 64, 1);
  refused(mx::add(w, nan), mx::eye(64), "weights");
  refused(w, mx::multiply(mx::eye(64), nan), "inputs");
}

/// Inputs x of the full-precision model and x̂ of the quantized one: x̂ has lost some of x's directions and gained noise.
struct Pair {
  explicit Pair(unsigned seed) : x(inputs(400, 64, seed)), hat(x) {
    const auto mix = mx::multiply(mx::random::normal({64, 64}, mx::float32, mx::random::key(77)), mx::array(0.05f));
    hat = mx::add(mx::add(mx::multiply(x, mx::array(0.9f)), mx::matmul(x, mix)),
                  mx::multiply(mx::random::normal(x.shape(), mx::float32, mx::random::key(seed + 9)), mx::array(0.1f)));
  }
  Hessian hessian() const { return {kernels::gram(hat), kernels::shift_moment(x, hat), 400}; }
  double error(const mx::array& w, const mx::array& used) const {
    return mx::sum(mx::square(mx::subtract(mx::matmul(x, mx::transpose(w)), mx::matmul(hat, mx::transpose(used))))).item<float>() / 400;
  }
  mx::array x, hat;
};

TEST(Gptq, CorrectionAimsAtTheFullPrecisionOutputs) {
  const auto w = weights(16, 64, 11);
  const Pair train(12), held(13);
  const codec::Format fine{codec::Mode::affine, 8, 32};
  GptqOptions with, without;
  with.correction = 1;
  with.damp = without.damp = 1e-4;
  const auto value = [&](const GptqOptions& o) { return codec::dequantize(quantized(w, train.hessian(), fine, o).packed, fine, mx::float32); };
  EXPECT_LT(held.error(w, value(with)), 0.5 * held.error(w, value(without)));
  // Least squares leaves a residual that is orthogonal to x̂: no further step along w·S lowers the error on the rows it was fitted on.
  const auto best = value(with);
  for (float c : {-0.05f, 0.05f}) EXPECT_LT(train.error(w, best), train.error(w, mx::add(best, mx::multiply(mx::array(c), mx::subtract(best, w)))));
}

TEST(Gptq, CorrectionShareIsTheBestOnHeldOutRows) {
  const auto w = weights(16, 64, 14);
  const Pair train(15), held(16);
  const FactoredHessian fitted("w", train.hessian(), 32, {});
  const double share = correction_share(w, fitted, held.hessian());
  EXPECT_GT(share, 0.5);
  EXPECT_LE(share, 1);
  // Shifts that held-out rows contradict are not taken.
  auto against = held.hessian();
  against.shift = mx::negative(*against.shift);
  EXPECT_EQ(correction_share(w, fitted, against), 0);
  EXPECT_EQ(correction_share(w, FactoredHessian("w", {mx::eye(64), std::nullopt, 1}, 32, {}), held.hessian()), 0);
}

}  // namespace
}  // namespace lquant::quantize
