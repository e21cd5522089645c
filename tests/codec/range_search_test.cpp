#include "codec/range_search.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/error.h"
#include "codec/quantize.h"
#include "kernels/primitive.h"
#include "oracle/codec_range.h"

namespace lquant::codec {
namespace {

const std::vector<mx::Dtype> kFloats = {mx::float32, mx::bfloat16, mx::float16};

/// Rows of different kinds: Gaussian, Laplace, heavy-tailed, one-sided, constant, zero, one outlier.
mx::array mixed_rows(int columns, mx::Dtype dtype, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::exponential_distribution<float> exponential;
  std::student_t_distribution<float> heavy(3);
  std::vector<float> values;
  for (int row = 0; row < 8; ++row) {
    for (int j = 0; j < columns; ++j) {
      const float x[] = {normal(random),
                         exponential(random) * (random() % 2 ? 1.0f : -1.0f),
                         heavy(random),
                         exponential(random),
                         -2 - exponential(random),
                         0.7f,
                         0,
                         j == 3 ? 50.0f : normal(random)};
      values.push_back(0.05f * x[row]);
    }
  }
  return mx::astype(mx::array(values.data(), {8, columns}, mx::float32), dtype);
}

mx::array random_importance(const mx::Shape& shape, unsigned seed) {
  return mx::exp(mx::random::normal(shape, mx::float32, mx::random::key(seed)) * mx::array(1.5f));
}

bool same_bytes(mx::array a, mx::array b) {
  a = mx::contiguous(a);
  b = mx::contiguous(b);
  mx::eval(a, b);
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()) == 0;
}

bool same_packed(const Packed& a, const Packed& b) {
  return same_bytes(a.codes, b.codes) && same_bytes(a.scales, b.scales) && same_bytes(*a.biases, *b.biases);
}

/// Σ h·(w − ŵ)² in double, over values that MLX dequantizes.
double error_by_mlx(const mx::array& w, const Packed& p, const Format& f, const std::optional<mx::array>& importance) {
  auto back = mx::dequantize(p.codes, p.scales, p.biases, f.group_size, f.bits, to_string(f.mode), std::nullopt, mx::float32, mx::Device::cpu);
  auto plain = mx::astype(w, mx::float32), h = mx::contiguous(mx::broadcast_to(importance.value_or(mx::array(1.0f)), w.shape()));
  mx::eval(back, plain, h);
  double sum = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double d = static_cast<double>(plain.data<float>()[i]) - back.data<float>()[i];
    sum += h.data<float>()[i] * d * d;
  }
  return sum;
}

/// Both sums are of nonnegative terms in double, in different orders: n terms err by at most n·2^−52 of the sum. A GPU sums in f32.
void expect_same_sum(double a, double b, std::size_t terms) {
  const double unit = kernels::cuda_kernels() ? 0x1p-24 : 0x1p-52;
  EXPECT_NEAR(a, b, static_cast<double>(terms) * unit * std::max(a, b));
}

/// Plain rounding as a CPU does it, which the search keeps to on every device; MLX's CUDA kernel rounds a few weights otherwise.
Packed plainly(const mx::array& w, const Format& f) {
  const auto device = mx::default_device();
  mx::set_default_device(mx::Device::cpu);
  auto packed = quantize(w, f);
  mx::eval(packed.codes, packed.scales);
  if (packed.biases) packed.biases->eval();
  mx::set_default_device(device);
  return packed;
}

TEST(RangeSearch, NeverWorseThanPlainAndItsErrorsAreTrue) {
  unsigned seed = 1;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      for (const auto& dtype : kFloats) {
        for (bool weighted : {false, true}) {
          SCOPED_TRACE(testing::Message() << bits << " bits, groups of " << group << ", " << dtype << (weighted ? ", weighted" : ""));
          const Format f{Mode::affine, bits, group};
          const auto w = mixed_rows(2 * group, dtype, seed);
          const auto h = weighted ? std::optional(random_importance({2 * group}, seed)) : std::nullopt;
          ++seed;
          const auto found = range_search(w, f, h);
          EXPECT_EQ(found.packed.scales.dtype(), dtype);
          EXPECT_LT(found.error, found.plain_error);  // of the eight rows some can always be helped
          expect_same_sum(found.error, error_by_mlx(w, found.packed, f, h), w.size());
          expect_same_sum(found.plain_error, error_by_mlx(w, plainly(w, f), f, h), w.size());
          expect_same_sum(found.error, weighted_error(w, found.packed, f, h), w.size());
          for (int row = 0; row < 8; ++row) {
            const auto one = mx::slice(w, {row, 0}, {row + 1, 2 * group});
            const auto alone = range_search(one, f, h);
            EXPECT_LE(alone.error, alone.plain_error) << "row " << row;
          }
        }
      }
    }
  }
}

// The optimum over all of bf16 has its edges somewhere in the grid's square, at most half a grid step from a grid point, or a whole one
// at the drawn-in end: at most d = m/16, with m the largest magnitude. Moving both edges by at most d moves every value of the optimum's
// codes by at most d; storing scale, product, bias and sum rounds by at most 2^−8·m each; nearest codes lower the error further. By the
// triangle inequality of the weighted norm, √error ≤ √optimum + (d + 4·2^−8·m)·√Σh. (A refit may leave the square, so the optimum in it
// is no lower bound.)
TEST(RangeSearch, NearTheBestOfAllStoredScalesAndBiases) {
  for (int bits : {2, 3}) {
    for (unsigned seed = 1; seed <= 3; ++seed) {
      std::mt19937 random(seed);
      std::normal_distribution<float> normal;
      std::vector<float> values(32), importances(32);
      for (auto& x : values) x = normal(random);
      for (auto& h : importances) h = std::exp(normal(random));
      auto w = mx::astype(mx::array(values.data(), {1, 32}, mx::float32), mx::bfloat16), back = mx::astype(w, mx::float32);
      back.eval();
      values.assign(back.data<float>(), back.data<float>() + 32);
      double largest = 0, sum_h = 0;
      for (int j = 0; j < 32; ++j) largest = std::max(largest, std::abs(static_cast<double>(values[j]))), sum_h += importances[j];
      const double best = oracle::exhaustive_range_error(values, importances, bits, 0.5);
      const auto found = range_search(w, {Mode::affine, bits, 32}, mx::array(importances.data(), {32}, mx::float32));
      EXPECT_LE(std::sqrt(found.error), std::sqrt(best) + (1.0 / 16 + 4.0 / 256) * largest * std::sqrt(sum_h));
    }
  }
}

// By powers of two, which no rounding notices.
TEST(RangeSearch, ScalingTheImportanceChangesNothing) {
  const Format f{Mode::affine, 4, 64};
  const auto w = mixed_rows(256, mx::bfloat16, 3);
  const auto h = random_importance({256}, 4);
  const auto found = range_search(w, f, h), larger = range_search(w, f, h * mx::array(0x1p40f)),
             smaller = range_search(w, f, h * mx::array(0x1p-40f));
  EXPECT_TRUE(same_packed(found.packed, larger.packed));
  EXPECT_TRUE(same_packed(found.packed, smaller.packed));
  EXPECT_EQ(larger.error, std::ldexp(found.error, 40));
  EXPECT_TRUE(same_packed(range_search(w, f).packed, range_search(w, f, mx::full({256}, 8.0f)).packed));
}

TEST(RangeSearch, ImportanceIsHeeded) {
  const Format f{Mode::affine, 2, 32};
  const auto w = mixed_rows(64, mx::bfloat16, 8);
  const auto h = random_importance({64}, 9);
  EXPECT_LT(weighted_error(w, range_search(w, f, h).packed, f, h), weighted_error(w, range_search(w, f).packed, f, h));
  EXPECT_TRUE(same_packed(range_search(w, f, mx::zeros({64})).packed, plainly(w, f)));
}

TEST(RangeSearch, ExpertsHaveTheirOwnImportance) {
  const Format f{Mode::affine, 3, 64};
  const auto w = mx::stack({mixed_rows(128, mx::bfloat16, 1), mixed_rows(128, mx::bfloat16, 2)});
  const auto h = random_importance({2, 128}, 5);
  const auto both = range_search(w, f, h);
  double error = 0;
  for (int e : {0, 1}) {
    const auto one = range_search(mx::take(w, e, 0), f, mx::take(h, e, 0));
    EXPECT_TRUE(same_bytes(mx::take(both.packed.codes, e, 0), one.packed.codes));
    EXPECT_TRUE(same_bytes(mx::take(both.packed.scales, e, 0), one.packed.scales));
    error += one.error;
  }
  expect_same_sum(both.error, error, w.size());
}

TEST(RangeSearch, ScalesMayBeStoredCoarserThanWeights) {
  const Format f{Mode::affine, 4, 64};
  const auto w = mixed_rows(128, mx::float32, 6);
  const auto found = range_search(w, f, std::nullopt, mx::bfloat16);
  EXPECT_EQ(found.packed.scales.dtype(), mx::bfloat16);
  EXPECT_LT(found.error, found.plain_error);
  expect_same_sum(found.error, error_by_mlx(w, found.packed, f, std::nullopt), w.size());
}

TEST(RangeSearch, WeightsThatAreNotNumbersKeepThePlainRule) {
  const Format f{Mode::affine, 4, 32};
  std::vector<float> values(64, 0.5f);
  for (int i = 0; i < 64; ++i) values[i] = std::sin(static_cast<float>(i));
  values[7] = std::numeric_limits<float>::quiet_NaN(), values[40] = std::numeric_limits<float>::infinity();
  const mx::array w(values.data(), {2, 32}, mx::float32);
  const auto found = range_search(w, f), plain = RangeSearchResult{plainly(w, f), 0, 0};
  EXPECT_TRUE(same_bytes(found.packed.codes, plain.packed.codes));
  EXPECT_TRUE(mx::array_equal(found.packed.scales, plain.packed.scales, true).item<bool>());
  EXPECT_TRUE(std::isnan(found.error));
}

TEST(RangeSearch, ModesWithoutBiasesArePlain) {
  for (auto mode : {Mode::mxfp4, Mode::mxfp8, Mode::nvfp4}) {
    const auto f = default_format(mode);
    const auto w = mixed_rows(64, mx::bfloat16, 2);
    const auto found = range_search(w, f);
    EXPECT_TRUE(same_bytes(found.packed.codes, quantize(w, f).codes));
    expect_same_sum(found.error, error_by_mlx(w, found.packed, f, std::nullopt), w.size());
  }
}

TEST(RequantizeCodes, NoOtherCodeIsNearer) {
  unsigned seed = 30;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (const auto& dtype : kFloats) {
      SCOPED_TRACE(testing::Message() << bits << " bits, " << dtype);
      const Format f{Mode::affine, bits, 32};
      const auto w = mixed_rows(64, dtype, seed++);
      const auto plain = quantize(w, f);
      // Ranges that do not fit the weights, so that codes are cut off at both ends.
      const auto scales = plain.scales * mx::array(0.7f, dtype), biases = *plain.biases * mx::array(0.8f, dtype);
      const auto codes = requantize_codes(w, scales, biases, f);
      const auto distance = [&](const mx::array& words) {
        return mx::abs(mx::astype(w, mx::float32) -
                       mx::dequantize(words, scales, biases, 32, bits, "affine", std::nullopt, mx::float32, mx::Device::cpu));
      };
      const auto found = distance(codes);
      for (int q = 0; q < 1 << bits; ++q) {
        const auto other = distance(pack_codes(mx::full({8, 64}, q, mx::uint8), bits));
        ASSERT_TRUE(mx::all(mx::less_equal(found, other)).item<bool>()) << "code " << q;
      }
    }
  }
}

TEST(MeasureError, EqualsPlainSums) {
  const Format f{Mode::affine, 4, 32};
  const auto w = mixed_rows(64, mx::bfloat16, 12);
  const auto h = random_importance({64}, 13);
  const auto packed = quantize(w, f);
  const auto error = measure_error(w, packed, f, h);
  expect_same_sum(error.weighted, error_by_mlx(w, packed, f, h), w.size());
  expect_same_sum(error.mean_square * static_cast<double>(w.size()), error_by_mlx(w, packed, f, std::nullopt), w.size());
  const auto back = mx::dequantize(packed.codes, packed.scales, packed.biases, 32, 4, "affine", std::nullopt, mx::float32, mx::Device::cpu);
  const auto distance = mx::abs(mx::astype(w, mx::float32) - back);
  // The difference of two bf16 values of the same sign is exact in f32 here or rounded once: 2^−24.
  EXPECT_NEAR(error.max_abs, mx::max(distance).item<float>(), 0x1p-24 * error.max_abs);
}

TEST(RangeSearch, AnImportanceOfEveryWeightIsThatOfEachRow) {
  mx::random::seed(17);
  const auto w = mx::random::normal({6, 128}), h = random_importance({6, 128}, 19);
  const Format f{Mode::affine, 3, 64};
  const auto together = range_search(w, f, h);
  double error = 0;
  for (int r = 0; r < 6; ++r) {
    const auto row = [&](const mx::array& x) { return mx::slice(x, {r, 0}, {r + 1, x.shape(1)}); };
    const auto alone = range_search(row(w), f, mx::reshape(row(h), {128}));
    EXPECT_TRUE(mx::array_equal(row(together.packed.codes), alone.packed.codes).item<bool>()) << r;
    EXPECT_TRUE(mx::array_equal(row(together.packed.scales), alone.packed.scales).item<bool>()) << r;
    error += alone.error;
  }
  // Importances are scaled by a power of two, another one for each call: nothing but the order of the sum differs.
  expect_same_sum(together.error, error, w.size());
}

TEST(RangeSearch, WrongArgumentsAreRefused) {
  const Format f{Mode::affine, 4, 32};
  const auto w = mixed_rows(64, mx::bfloat16, 1);
  EXPECT_THROW(range_search(w, f, mx::ones({32})), std::invalid_argument);
  EXPECT_THROW(range_search(w, f, mx::ones({8, 32})), std::invalid_argument);
  EXPECT_THROW(range_search(w, f, mx::full({64}, -1.0f)), std::invalid_argument);
  EXPECT_THROW(range_search(w, f, mx::full({64}, std::numeric_limits<float>::infinity())), std::invalid_argument);
  EXPECT_THROW(range_search(w, f, std::nullopt, mx::int32), std::invalid_argument);
  EXPECT_THROW(range_search(w, {Mode::affine, 4, 128}), Error);
  EXPECT_THROW(requantize_codes(w, mx::ones({8, 1}), mx::ones({8, 1}), f), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::codec
