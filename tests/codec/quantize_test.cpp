#include "codec/quantize.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "base/error.h"

namespace lquant::codec {
namespace {

const std::vector<mx::Dtype> kFloats = {mx::float32, mx::bfloat16, mx::float16};

std::vector<Format> all_formats() {
  std::vector<Format> formats{default_format(Mode::mxfp4), default_format(Mode::mxfp8), default_format(Mode::nvfp4)};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) formats.push_back({Mode::affine, bits, group});
  }
  return formats;
}

std::string describe(const Format& f, const mx::array& w) {
  std::ostringstream text;
  text << to_string(f.mode) << ", " << f.bits << " bits, groups of " << f.group_size << ", " << w.dtype() << " " << w.shape();
  return text.str();
}

/// Equal byte for byte; one NaN is as good as another.
void expect_same(mx::array a, mx::array b) {
  ASSERT_EQ(a.shape(), b.shape());
  ASSERT_EQ(a.dtype(), b.dtype());
  if (mx::issubdtype(a.dtype(), mx::floating)) {
    ASSERT_TRUE(mx::array_equal(mx::isnan(a), mx::isnan(b)).item<bool>());
    a = mx::where(mx::isnan(a), mx::zeros_like(a), a);
    b = mx::where(mx::isnan(b), mx::zeros_like(b), b);
  }
  a = mx::contiguous(a);
  b = mx::contiguous(b);
  mx::eval(a, b);
  ASSERT_EQ(std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()), 0);
}

void expect_as_mlx(const mx::array& w, const Format& f) {
  SCOPED_TRACE(describe(f, w));
  const auto ours = quantize(w, f);
  const auto mlx = mx::quantize(w, f.group_size, f.bits, to_string(f.mode));
  expect_same(ours.codes, mlx[0]);
  expect_same(ours.scales, mlx[1]);
  ASSERT_EQ(ours.biases.has_value(), mlx.size() == 3);
  if (ours.biases) expect_same(*ours.biases, mlx[2]);
  for (const auto& wanted : kFloats) {
    const auto biases = mlx.size() == 3 ? std::optional(mlx[2]) : std::nullopt;
    expect_same(dequantize(ours, f, wanted), mx::dequantize(mlx[0], mlx[1], biases, f.group_size, f.bits, to_string(f.mode), std::nullopt, wanted));
  }
}

mx::array normal(const mx::Shape& shape, mx::Dtype dtype, std::uint64_t seed, float deviation = 0.05f) {
  return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)) * mx::array(deviation), dtype);
}

TEST(Quantize, EqualsMlxInEveryFormatDtypeAndShape) {
  std::uint64_t seed = 1;
  for (const auto& f : all_formats()) {
    for (const auto& dtype : kFloats) {
      // MLX on a CPU makes units of 32 codes, so one group of 16 is beyond it.
      for (const mx::Shape& shape : {mx::Shape{1, std::max(32, f.group_size)}, mx::Shape{3, 5, 2 * f.group_size}, mx::Shape{10, 11 * f.group_size}}) {
        expect_as_mlx(normal(shape, dtype, seed++), f);
      }
    }
  }
}

TEST(Quantize, EqualsMlxOnRowsOf704) {
  for (const auto& f : all_formats()) {
    if (704 % f.group_size == 0) expect_as_mlx(normal({128, 704}, mx::bfloat16, 7), f);
  }
}

// Each row is a kind of group that a formula could trip on.
TEST(Quantize, EqualsMlxOnOddValues) {
  const std::vector<std::function<float(int)>> rows = {
      [](int) { return 0.0f; },
      [](int i) { return i % 2 ? 0.0f : -0.0f; },
      [](int) { return 0.75f; },
      [](int) { return -3.0f; },
      [](int i) { return 1.0f + 0.001f * i; },
      [](int i) { return -1.0f - 0.3f * (i % 7); },
      [](int i) { return i == 5 ? 100.0f : 0.01f * (i % 3); },
      [](int i) { return i == 5 ? -100.0f : 0.01f * (i % 3); },
      [](int i) { return (i % 16 - 8) * 0.5f; },    // ties on every grid of halves
      [](int i) { return (i % 31 - 15) * 4e3f; },   // beyond what an nvfp4 scale reaches
      [](int i) { return (i % 31 - 15) * 1e-6f; },  // below what an nvfp4 scale reaches; subnormal in float16
      [](int i) { return (i % 31 - 15) * 3e-5f; },
      [](int i) { return i == 5 ? 3.47e-5f : 0.0f; },  // as float16, 1/448 of it would round to a power of two
      [](int i) { return i % 2 ? 1.0f : -1.0f; },      // both edges alike
  };
  for (const auto& f : all_formats()) {
    for (const auto& dtype : kFloats) {
      std::vector<float> values;
      for (const auto& row : rows) {
        for (int i = 0; i < 128; ++i) values.push_back(row(i));
      }
      expect_as_mlx(mx::astype(mx::array(values.data(), {static_cast<int>(rows.size()), 128}, mx::float32), dtype), f);
    }
  }
}

TEST(Quantize, EqualsMlxOnSubnormalAndHugeValues) {
  for (const auto& f : all_formats()) {
    for (float size : {1e-39f, 1e-36f, 1e30f, 2e37f}) {
      for (const auto& dtype : {mx::float32, mx::bfloat16}) {
        // The mx modes' scale is a power of two from 2^−127 on; MLX's conversion of a smaller exponent wraps around, which nobody needs.
        if (f.mode != Mode::affine && size < 1e-38f) continue;
        expect_as_mlx(normal({4, 128}, dtype, 3, size), f);
      }
    }
  }
}

TEST(Quantize, NanTakesNoPartAndInfinityPoisonsItsGroup) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    const Format f{Mode::affine, bits, 32};
    std::vector<float> values(96);
    for (int i = 0; i < 96; ++i) values[i] = 0.1f * ((i * 7) % 32) - 1;
    values[3] = nan, values[40] = infinity;
    const mx::array w(values.data(), {3, 32}, mx::float32);
    expect_as_mlx(w, f);
    const auto back = dequantize(quantize(w, f), f, mx::float32);
    EXPECT_FALSE(mx::any(mx::isnan(mx::take(back, mx::array({0, 2}), 0))).item<bool>());
    EXPECT_TRUE(mx::all(mx::isnan(mx::take(back, mx::array({1}), 0))).item<bool>());
  }
}

TEST(Quantize, LargeWorkIsSplitAndViewsAreRead) {
  const auto w = mx::transpose(normal({512, 700}, mx::bfloat16, 11));
  for (const auto& f : {Format{Mode::affine, 3, 64}, default_format(Mode::mxfp8), default_format(Mode::nvfp4)}) expect_as_mlx(w, f);
}

TEST(Quantize, EveryE4m3ScaleDecodesAsMlx) {
  std::vector<std::uint8_t> bytes(256);
  for (int i = 0; i < 256; ++i) bytes[i] = static_cast<std::uint8_t>(i);
  const mx::array all(bytes.data(), {256, 1}, mx::uint8);
  for (const auto& f : {default_format(Mode::nvfp4), default_format(Mode::mxfp4), default_format(Mode::mxfp8)}) {
    // Codes 0, 1, 2, …: all 16 of four bits; of eight bits, row r holds a window that starts at r.
    std::vector<std::uint8_t> codes;
    for (int r = 0; r < 256; ++r) {
      for (int i = 0; i < f.group_size * f.bits / 8; ++i) codes.push_back(static_cast<std::uint8_t>(f.bits == 4 ? 0x10 + 0x22 * i : r + i));
    }
    const auto words = mx::view(mx::array(codes.data(), {256, f.group_size * f.bits / 8}, mx::uint8), mx::uint32);
    for (const auto& wanted : kFloats) {
      SCOPED_TRACE(to_string(f.mode));
      expect_same(dequantize({words, all, std::nullopt}, f, wanted),
                  mx::dequantize(words, all, std::nullopt, f.group_size, f.bits, to_string(f.mode), std::nullopt, wanted));
    }
  }
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Quantize, WhatCannotBeQuantizedIsRefusedInASentence) {
  const Format f{Mode::affine, 4, 64};
  EXPECT_EQ(message_of([&] {
              quantize(mx::zeros({2, 96}), f);
            }),
            "[codec] a weight of shape [2, 96] cannot be cut into groups of 64: 96 is no multiple of it; choose a smaller group size or leave it "
            "unquantized");
  EXPECT_EQ(message_of([&] {
              quantize(mx::zeros({4, 0}), f);
            }),
            "[codec] a weight of shape [4, 0] has no rows or columns to quantize; leave it unquantized");
  EXPECT_EQ(message_of([&] { quantize(mx::zeros({64}), f); }),
            "[codec] a weight of shape [64] has no rows or columns to quantize; leave it unquantized");
  EXPECT_EQ(message_of([&] {
              quantize(mx::zeros({2, 64}, mx::int32), f);
            }),
            "[codec] only float32, bfloat16 and float16 weights can be quantized; convert the checkpoint to one of these");
  EXPECT_EQ(message_of([&] {
              quantize(mx::zeros({2, 64}), {Mode::affine, 7, 64});
            }),
            "[codec] affine weights of 7 bits do not exist; choose 2, 3, 4, 5, 6 or 8");
}

}  // namespace
}  // namespace lquant::codec
