#include "kernels/dequantize.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

namespace lquant::kernels {
namespace {

const std::vector<mx::Dtype> kFloats = {mx::float32, mx::bfloat16, mx::float16};
constexpr int kBits[] = {2, 3, 4, 5, 6, 8};

/// Equal byte for byte, so that −0 and subnormals count; but one NaN is as good as another (which operand's sign a processor hands on
/// is not the program's choice).
void expect_same_bytes(mx::array a, mx::array b) {
  ASSERT_EQ(a.shape(), b.shape());
  ASSERT_EQ(a.dtype(), b.dtype());
  if (a.dtype() != mx::uint32 && a.dtype() != mx::uint8) {
    ASSERT_TRUE(mx::array_equal(mx::isnan(a), mx::isnan(b)).item<bool>());
    a = mx::where(mx::isnan(a), mx::zeros_like(a), a);
    b = mx::where(mx::isnan(b), mx::zeros_like(b), b);
  }
  a = mx::contiguous(a);
  b = mx::contiguous(b);
  mx::eval(a, b);
  ASSERT_EQ(std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()), 0);
}

mx::array random_codes(const mx::Shape& shape, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::size_t size = 1;
  for (int d : shape) size *= d;
  std::vector<std::uint32_t> words(size);
  for (auto& w : words) w = random();
  return mx::array(words.data(), shape, mx::uint32);
}

struct Case {
  mx::array codes, scales, biases;
};

Case random_case(mx::Shape shape, int bits, int group_size, mx::Dtype dtype, std::uint32_t seed) {
  auto words = shape, groups = shape;
  words.back() = shape.back() * bits / 32;
  groups.back() = shape.back() / group_size;
  const auto key = mx::random::key(seed);
  const auto scales = mx::astype(mx::random::normal(groups, mx::float32, key) * mx::array(0.03f), dtype);
  const auto biases = mx::astype(mx::random::normal(groups, mx::float32, mx::random::key(seed + 1)), dtype);
  return {random_codes(words, seed), scales, biases};
}

TEST(Dequantize, EqualsMlxBitForBit) {
  std::uint32_t seed = 1;
  for (int bits : kBits) {
    for (int group_size : {32, 64, 128}) {
      for (const auto& stored : kFloats) {
        for (const auto& wanted : kFloats) {
          for (const mx::Shape& shape : {mx::Shape{1, group_size}, mx::Shape{3, 5, 2 * group_size}, mx::Shape{7, 11 * group_size}}) {
            SCOPED_TRACE(testing::Message() << bits << " bits, groups of " << group_size << ", " << stored << " to " << wanted);
            const auto c = random_case(shape, bits, group_size, stored, seed++);
            expect_same_bytes(dequantize_affine(c.codes, c.scales, c.biases, bits, group_size, wanted),
                              mx::dequantize(c.codes, c.scales, c.biases, group_size, bits, "affine", std::nullopt, wanted));
          }
        }
      }
    }
  }
}

// Every 16-bit pattern as a scale, with a bias that meets it: subnormals, infinities, NaN, and sums that cancel.
TEST(Dequantize, EqualsMlxForEveryScaleOf16Bits) {
  std::vector<std::uint16_t> patterns(1 << 16);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  for (const auto& dtype : {mx::bfloat16, mx::float16}) {
    const auto scales = mx::view(mx::array(patterns.data(), {1 << 11, 32}, mx::uint16), dtype);
    const auto biases = mx::negative(scales * mx::array(7.0f, dtype));
    const auto codes = random_codes({1 << 11, 32 * 4}, 3);
    for (const auto& wanted : kFloats) {
      SCOPED_TRACE(testing::Message() << dtype << " to " << wanted);
      expect_same_bytes(dequantize_affine(codes, scales, biases, 4, 32, wanted),
                        mx::dequantize(codes, scales, biases, 32, 4, "affine", std::nullopt, wanted));
    }
  }
}

TEST(Dequantize, LargeWorkIsSplitAndViewsAreRead) {
  // 2^20 weights are several grains of work; the transposed codes and every second scale are not contiguous.
  const auto codes = mx::transpose(random_codes({1024 * 5 / 32, 1024}, 9));
  const auto wide = mx::random::normal({1024, 32}, mx::float32, mx::random::key(4));
  const auto scales = mx::slice(wide, {0, 0}, {1024, 32}, {1, 2});
  expect_same_bytes(dequantize_affine(codes, scales, scales, 5, 64, mx::bfloat16),
                    mx::dequantize(codes, scales, scales, 64, 5, "affine", std::nullopt, mx::bfloat16));
}

// The sums of a group of g terms run in f32, in any order: each addition and each product errs by at most ε = 2^−24 of the
// magnitudes, so a sum errs by at most (g + 1)·ε·Σ|terms|; the result is rounded once more to the dtype of the scales.
TEST(Dequantize, GradientsEqualSumsInDouble) {
  std::uint32_t seed = 50;
  for (int bits : kBits) {
    for (int group_size : {32, 64, 128}) {
      for (const auto& stored : kFloats) {
        for (const auto& upstream : {mx::float32, mx::bfloat16}) {
          SCOPED_TRACE(testing::Message() << bits << " bits, groups of " << group_size << ", " << stored << ", upstream " << upstream);
          const mx::Shape shape{5, 3 * group_size};
          const auto c = random_case(shape, bits, group_size, stored, seed++);
          const auto upstream_values = mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), upstream);
          const auto fun = [&](const std::vector<mx::array>& x) {
            return std::vector{dequantize_affine(c.codes, x[0], x[1], bits, group_size, upstream)};
          };
          const auto [values, gradients] = mx::vjp(fun, {c.scales, c.biases}, {upstream_values});
          ASSERT_EQ(gradients[0].dtype(), stored);
          ASSERT_EQ(gradients[1].shape(), c.biases.shape());
          auto got_scales = mx::astype(gradients[0], mx::float32), got_biases = mx::astype(gradients[1], mx::float32);
          auto q = mx::astype(unpack_codes(c.codes, bits), mx::float32), dw = mx::astype(upstream_values, mx::float32);
          mx::eval(got_scales, got_biases, q, dw);
          const double unit = stored == mx::float32 ? 0x1p-24 : stored == mx::bfloat16 ? 0x1p-8 : 0x1p-11;
          for (int g = 0; g < 15; ++g) {
            double scale = 0, bias = 0, scale_size = 0, bias_size = 0;
            for (int j = g * group_size; j < (g + 1) * group_size; ++j) {
              const double d = dw.data<float>()[j], code = q.data<float>()[j];
              scale += d * code, bias += d, scale_size += std::abs(d * code), bias_size += std::abs(d);
            }
            const double sums = (group_size + 1) * 0x1p-24;
            EXPECT_NEAR(got_scales.data<float>()[g], scale, unit * std::abs(scale) + 2 * sums * scale_size);
            EXPECT_NEAR(got_biases.data<float>()[g], bias, unit * std::abs(bias) + 2 * sums * bias_size);
          }
        }
      }
    }
  }
}

// f(s, b) = Σ c·(s·q + b)² is quadratic, so the central difference is exact but for rounding. With |values| below 8 and codes below 16 W is
// below 2^7, f = Σ of 64 terms c·W² below 2^20 with c = 1; f32 rounding of the sum and of W is below 2^20·(64 + 4)·2^−24 < 5;
// the step ½ divides by 1, so the difference of two sums errs by less than 10. The gradients are 2·Σ W·q, of size 10^3 … 10^4.
TEST(Dequantize, GradientsEqualFiniteDifferences) {
  const auto codes = random_codes({1, 8}, 77);
  const std::vector<mx::array> at = {mx::array({1.25f}, {1, 1}), mx::array({-3.5f}, {1, 1})};
  const auto loss = [&](const std::vector<mx::array>& x) { return mx::sum(mx::square(dequantize_affine(codes, x[0], x[1], 4, 64, mx::float32))); };
  auto gradients = mx::grad(loss, std::vector<int>{0, 1})(at);
  for (int i : {0, 1}) {
    auto up = at, down = at;
    up[i] = up[i] + mx::array(0.5f);
    down[i] = down[i] - mx::array(0.5f);
    const float difference = loss(up).item<float>() - loss(down).item<float>();
    EXPECT_GT(std::abs(difference), 200);
    EXPECT_NEAR(gradients[i].item<float>(), difference, 10);
  }
}

TEST(Dequantize, GradientOfOneInputAlone) {
  const auto c = random_case({2, 64}, 4, 64, mx::float32, 5);
  const auto loss = [&](const mx::array& biases) { return mx::sum(dequantize_affine(c.codes, c.scales, biases, 4, 64, mx::float32)); };
  auto gradient = mx::grad(loss)(c.biases);
  EXPECT_TRUE(mx::array_equal(gradient, mx::full({2, 1}, 64.0f)).item<bool>());
}

TEST(Codes, UnpackAsMlxAndPackBack) {
  std::uint32_t seed = 20;
  for (int bits : kBits) {
    for (const mx::Shape& shape : {mx::Shape{bits}, mx::Shape{1, bits}, mx::Shape{3, 5, 22 * bits}, mx::Shape{64, 128 * bits}}) {
      SCOPED_TRACE(bits);
      const auto words = random_codes(shape, seed++);
      const auto codes = unpack_codes(words, bits);
      // With scale 1 and bias 0 dequantization gives the codes.
      const auto rows = mx::reshape(words, {-1, shape.back()});
      const mx::Shape groups{rows.shape(0), shape.back() / bits};
      const auto expected = mx::astype(mx::dequantize(rows, mx::ones(groups), mx::zeros(groups), 32, bits), mx::uint8);
      expect_same_bytes(codes, mx::reshape(expected, codes.shape()));
      expect_same_bytes(pack_codes(codes, bits), words);
    }
  }
}

TEST(Codes, WrongShapesAreRefused) {
  const auto words = random_codes({2, 8}, 1);
  const auto ones = mx::ones({2, 1}), pair = mx::ones({2, 2});
  EXPECT_THROW(dequantize_affine(words, pair, pair, 4, 64, mx::float32), std::invalid_argument);
  EXPECT_THROW(dequantize_affine(words, ones, ones, 7, 64, mx::float32), std::invalid_argument);
  EXPECT_THROW(dequantize_affine(words, ones, ones, 4, 48, mx::float32), std::invalid_argument);
  EXPECT_THROW(dequantize_affine(words, ones, mx::astype(ones, mx::bfloat16), 4, 64, mx::float32), std::invalid_argument);
  EXPECT_THROW(dequantize_affine(words, ones, ones, 4, 64, mx::int32), std::invalid_argument);
  EXPECT_THROW(unpack_codes(words, 3), std::invalid_argument);
  EXPECT_THROW(unpack_codes(mx::astype(words, mx::int32), 4), std::invalid_argument);
  EXPECT_THROW(pack_codes(mx::zeros({2, 40}, mx::uint8), 4), std::invalid_argument);
  EXPECT_THROW(dequantize_affine_gradient(words, mx::zeros({2, 32}), 4, 64, mx::float32), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
