#include "kernels/layer_norm.h"

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_layer_norm.h"

namespace lquant::kernels {
namespace {

using namespace testing;
constexpr float kEps = 1e-5f;

/// Error of f32, in units of the oracle's terms: a sum of K numbers is off by at most K units of its absolute terms, whatever its order. The mean
/// is one, the variance another, halved by the root; 8 more cover the single operations. The gradient adds two sums and a third power of the root.
double value_error(int width) { return (1.5 * width + 8) * kF32; }
double gradient_error(int width) { return (4.0 * width + 16) * kF32; }

struct Tensors {
  mx::array x, weight, bias, cotangent;
};

/// Rows that lie off 0, as those of a residual stream do.
Tensors tensors(int rows, int width, mx::Dtype dtype) {
  return {normal({rows, width}, dtype, 1, 2, 0.7f), normal({width}, dtype, 2, 0.3f, 1), normal({width}, dtype, 3), normal({rows, width}, dtype, 4)};
}

class LayerNorm : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  int rows = std::get<0>(GetParam()), width = std::get<1>(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Sizes, LayerNorm, ::testing::Combine(::testing::Values(1, 3, 35), ::testing::Values(1, 7, 63, 65, 576)));

TEST_P(LayerNorm, ForwardMatchesOracle) {
  const Values ones(width, 1.0), zeros(width, 0.0);
  for (auto dtype : kDtypes) {
    const auto t = tensors(rows, width, dtype);
    const auto terms = oracle::layer_norm_terms(doubles(t.x), ones, doubles(t.cotangent), kEps).normed;
    const double u = unit(dtype), f32 = value_error(width);
    const auto expect = [&](bool weighted, bool biased, float offset, const char* what) {
      const auto weight = weighted ? std::optional(t.weight) : std::nullopt, bias = biased ? std::optional(t.bias) : std::nullopt;
      const auto scale = weighted ? doubles(mx::add(t.weight, mx::array(offset, dtype))) : ones, shift = biased ? doubles(t.bias) : zeros;
      const auto want = oracle::layer_norm(doubles(t.x), scale, shift, kEps), product = oracle::layer_norm(doubles(t.x), scale, zeros, kEps);
      Values bound;
      for (std::size_t i = 0; i < want.size(); ++i) {
        const double s = std::abs(scale[i % width]);
        // A rounding of the normed number, one of the product (2u + u² ≤ 2.01u), one of the sum, each of what the ones before have left.
        double error = terms[i] * s * f32 + std::abs(product[i]) * (weighted ? 2.01 : 1) * u + tiny(dtype) * (1 + s);
        if (biased) error += (std::abs(want[i]) + error) * u + tiny(dtype);
        bound.push_back(1.01 * error);
      }
      const auto got = layer_norm(t.x, weight, bias, kEps, offset);
      EXPECT_EQ(got.dtype(), dtype);
      expect_close(got, want, bound, what);
    };
    expect(false, false, 0, "bare");
    expect(true, false, 0, "weight");
    expect(false, true, 0, "bias");
    expect(true, true, 0, "weight and bias");
    expect(true, true, 1, "weight + 1 and bias");
  }
}

TEST_P(LayerNorm, GradientsMatchFiniteDifferences) {
  if (rows * width > 2000) return;  // differences of so many inputs take seconds
  for (auto dtype : kDtypes) {
    const auto t = tensors(rows, width, dtype);
    const auto x = doubles(t.x), w = doubles(t.weight), b = doubles(t.bias), g = doubles(t.cotangent);
    const auto terms = oracle::layer_norm_terms(x, w, g, kEps);
    const auto dx = numeric_gradient([&](const Values& v) { return oracle::layer_norm(v, w, b, kEps); }, x, g);
    const auto dw = numeric_gradient([&](const Values& v) { return oracle::layer_norm(x, v, b, kEps); }, w, g);
    const auto db = numeric_gradient([&](const Values& v) { return oracle::layer_norm(x, w, v, kEps); }, b, g);
    // MLX's ops are differentiated one by one: in 16 bits the product of cotangent and weight is rounded before the sums over it, and of dweight
    // the normed number, each product with it and the partial sums, of dbias these sums.
    const double u = unit(dtype), f32 = gradient_error(width), coarse = on_mlx(dtype) ? u : 0, least = kDifference + 2 * tiny(dtype);
    Values x_bound, w_bound, b_bound;
    for (std::size_t i = 0; i < dx.size(); ++i)
      x_bound.push_back(terms.dx[i] * (f32 + kDifference + coarse) + std::abs(dx[i]) * u + least * (1 + terms.dx[i]));
    for (int i = 0; i < width; ++i) {
      w_bound.push_back(terms.dweight[i] * (f32 + rows * kF32 + kDifference + (2 + rows) * coarse) + std::abs(dw[i]) * u + rows * least);
      b_bound.push_back(terms.dbias[i] * (rows * (kF32 + coarse) + kDifference) + std::abs(db[i]) * u + rows * least);
    }
    const auto f = [](const std::vector<mx::array>& in) { return std::vector{layer_norm(in[0], in[1], in[2], kEps)}; };
    const auto got = mx::vjp(f, {t.x, t.weight, t.bias}, {t.cotangent}).second;
    expect_close(got[0], dx, x_bound, "x");
    expect_close(got[1], dw, w_bound, "weight");
    expect_close(got[2], db, b_bound, "bias");
    for (const auto& gradient : got) EXPECT_EQ(gradient.dtype(), dtype);
  }
}

// With and without the other parameters, asked for one gradient at a time and in any order, the ops give the same bytes as for all at once.
TEST(LayerNormGradient, OfOneInputAlone) {
  const auto t = tensors(70, 65, mx::bfloat16);
  using Arrays = std::vector<mx::array>;
  const auto gradients = [&](const std::function<mx::array(const Arrays&)>& f, const Arrays& of) {
    return mx::vjp([&](const Arrays& in) { return Arrays{f(in)}; }, of, {t.cotangent}).second;
  };
  const auto all = gradients([](const Arrays& in) { return layer_norm(in[0], in[1], in[2], kEps); }, {t.x, t.weight, t.bias});
  const auto turned = gradients([](const Arrays& in) { return layer_norm(in[2], in[1], in[0], kEps); }, {t.bias, t.weight, t.x});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(same_bytes(all[i], turned[2 - i])) << i;
  EXPECT_TRUE(same_bytes(all[0], gradients([&](const Arrays& in) { return layer_norm(in[0], t.weight, std::nullopt, kEps); }, {t.x})[0]));
  EXPECT_TRUE(same_bytes(all[1], gradients([&](const Arrays& in) { return layer_norm(t.x, in[0], t.bias, kEps); }, {t.weight})[0]));
  EXPECT_TRUE(same_bytes(all[2], gradients([&](const Arrays& in) { return layer_norm(t.x, std::nullopt, in[0], kEps); }, {t.bias})[0]));
  const auto pair = gradients([](const Arrays& in) { return layer_norm(in[0], std::nullopt, in[1], kEps); }, {t.x, t.bias});
  const auto ones = gradients([](const Arrays& in) { return layer_norm(in[0], mx::ones({65}, mx::bfloat16), in[1], kEps); }, {t.x, t.bias});
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(same_bytes(pair[i], ones[i])) << i;
}

// The roundings are MLX's: of the normed number, of its product with the weight, of the sum with the bias. Where the sums over a row differ in
// their last bits the first may fall on the other side (once in some 10³ elements), a step that the product can double; the sum is then
// that far off, or one step of its own.
TEST(LayerNorm, EqualsMlxInBf16) {
  const auto t = tensors(64, 576, mx::bfloat16);
  const auto step = [](double v) { return v == 0 ? 0 : std::ldexp(1.0, std::ilogb(v) - 7); };
  const auto product = doubles(mx::fast::layer_norm(t.x, t.weight, std::nullopt, kEps));
  for (const bool biased : {false, true}) {
    const auto bias = biased ? std::optional(t.bias) : std::nullopt;
    const auto ours = doubles(layer_norm(t.x, t.weight, bias, kEps)), theirs = doubles(mx::fast::layer_norm(t.x, t.weight, bias, kEps));
    std::size_t different = 0;
    for (std::size_t i = 0; i < ours.size(); ++i) {
      different += ours[i] != theirs[i];
      ASSERT_LE(std::abs(ours[i] - theirs[i]), 2 * step(product[i]) + (biased ? step(theirs[i]) : 0)) << i;
    }
    EXPECT_LE(different, ours.size() / 500);
  }
}

TEST(LayerNorm, OfARowOfOneNumberIsItsBias) {
  const auto x = mx::full({3, 65}, 1000.0f), b = normal({65}, mx::float32, 1);
  const auto got = layer_norm(x, normal({65}, mx::float32, 2), b, kEps);
  EXPECT_TRUE(same_bytes(got, mx::contiguous(mx::broadcast_to(b, {3, 65}))));  // the sum of 65 thousands is exact
}

TEST(LayerNorm, DoesNotDependOnThreads) {
  const auto t = tensors(517, 576, mx::bfloat16);
  expect_thread_independent([&] {
    auto both = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{layer_norm(in[0], in[1], in[2], kEps)}; }, {t.x, t.weight, t.bias},
                        {t.cotangent});
    both.first.insert(both.first.end(), both.second.begin(), both.second.end());
    return both.first;
  });
}

TEST(LayerNorm, TakesViewsEmptyTensorsAndOtherWeights) {
  const auto x = normal({5, 4, 63}, mx::bfloat16, 1), w = normal({63}, mx::float32, 2), short_weight = normal({62}, mx::float32, 2);
  const auto turned = mx::transpose(x, {1, 0, 2});
  EXPECT_TRUE(same_bytes(layer_norm(turned, w, w, kEps), mx::transpose(layer_norm(x, w, w, kEps), {1, 0, 2})));
  EXPECT_EQ(layer_norm(x, w, w, kEps).dtype(), mx::bfloat16);
  EXPECT_EQ(layer_norm(mx::zeros({0, 63}, mx::bfloat16), w, w, kEps).shape(), (mx::Shape{0, 63}));
  EXPECT_THROW(layer_norm(x, short_weight, std::nullopt, kEps), std::invalid_argument);
  EXPECT_THROW(layer_norm(x, std::nullopt, short_weight, kEps), std::invalid_argument);
  EXPECT_THROW(layer_norm(mx::astype(x, mx::int32), std::nullopt, std::nullopt, kEps), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
