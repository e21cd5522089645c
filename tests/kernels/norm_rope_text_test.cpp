// The CUDA text of norms and rotations, run thread by thread on the CPU (cuda_on_host.h) and held to the references of the other devices' kernels.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda_text_testing.h"
#include "kernels/elementwise_testing.h"
#include "oracle/kernels_norm.h"
#include "oracle/kernels_rope.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-function"
// clang-format off: numbers.cu stands first, as it does before every kernel
namespace of_norms {
#include "kernels/numbers.cu"
#include "kernels/norm.cu"
}  // namespace of_norms
namespace of_rotations {
#include "kernels/numbers.cu"
#include "kernels/rope.cu"
}  // namespace of_rotations
// clang-format on
#pragma GCC diagnostic pop

namespace lquant::kernels {
namespace {

using namespace testing;
using cuda_on_host::floats, cuda_on_host::launch;

class NormText : public cuda_on_host::OnCpu {};

constexpr float kEps = 1e-5f;
constexpr int kThreads = 64;

std::vector<float> numbers(const mx::Shape& shape, int seed, float scale = 1, float mean = 0) {
  return floats(normal(shape, mx::float32, seed, scale, mean));
}
Values wide(const std::vector<float>& x) { return Values(x.begin(), x.end()); }

template <int n>
void norms_follow(int width, bool weighted) {
  const int rows = 3;
  const auto x = numbers({rows, width}, 1, 2), dy = numbers({rows, width}, 2), stored = numbers({width}, 3, 0.3f);
  const float* weight = weighted ? stored.data() : nullptr;
  std::vector<float> y(x.size()), dx(x.size());
  const int blocks = (rows * 32 + kThreads - 1) / kThreads;
  launch(blocks, kThreads, [&] { of_norms::lquant::rms_norm<float, float, n>(x.data(), weight, kEps, 1, rows, width, y.data()); });
  launch(blocks, kThreads,
         [&] { of_norms::lquant::rms_norm_gradient<float, float, n>(x.data(), weight, dy.data(), kEps, 1, rows, width, dx.data()); });
  Values scale(width, 1.0);
  for (int c = 0; weighted && c < width; ++c) scale[c] = stored[c] + 1.0f;  // rounded, as in the text
  const auto want = oracle::rms_norm(wide(x), scale, kEps), terms = oracle::rms_norm_gradient_terms(wide(x), scale, wide(dy), kEps);
  const auto gradient = numeric_gradient([&](const Values& v) { return oracle::rms_norm(v, scale, kEps); }, wide(x), wide(dy));
  // As norm_test.cpp derives it: sums of `width` squares and products, and eight operations more.
  const double f32 = (2.0 * width + 8) * kF32;
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(y[i], want[i], std::abs(want[i]) * (f32 + 2 * kF32)) << i;
    ASSERT_NEAR(dx[i], gradient[i], terms[i] * (f32 + kDifference) + kDifference) << i;
  }
}

TEST_F(NormText, NormsAndTheirGradientsMatchTheOracle) {
  for (const bool weighted : {true, false}) {
    norms_follow<1>(37, weighted);
    norms_follow<8>(320, weighted);
  }
}

TEST_F(NormText, SixteenBitsRoundTwice) {
  using B = of_norms::lquant::bf16;
  const int width = 64;
  const auto x = normal({width}, mx::bfloat16, 4), w = normal({width}, mx::bfloat16, 5, 0.3f, 1);
  const auto bits = [](const mx::array& a) {
    const auto raw = cuda_on_host::values<std::uint16_t>(mx::view(a, mx::uint16));
    std::vector<B> out(raw.size());
    for (std::size_t i = 0; i < raw.size(); ++i) out[i].bits = raw[i];
    return out;
  };
  const auto from = bits(x), weight = bits(w);
  std::vector<B> y(width);
  launch(1, kThreads, [&] { of_norms::lquant::rms_norm<B, B, 8>(from.data(), weight.data(), kEps, 0, 1, width, y.data()); });
  const auto plain = oracle::rms_norm(doubles(x), Values(width, 1.0), kEps), factors = doubles(w);
  int equal = 0;
  for (int i = 0; i < width; ++i) {
    const float once = static_cast<float>(B(static_cast<float>(plain[i])));
    const float twice = static_cast<float>(B(once * static_cast<float>(factors[i]))), got = static_cast<float>(y[i]);
    equal += got == twice;
    ASSERT_NEAR(got, twice, 0x1p-7 * std::abs(twice));  // where x / rms lies at a border of its rounding
  }
  EXPECT_GE(equal, width - 1);
}

template <bool interleaved, int n>
void rotations_follow(int width, int pairs, bool own_positions) {
  const int batch = 2, length = 3, heads = 2, tokens = batch * length, offset = 5;
  const float magnitude = 1.25f;
  const auto x = numbers({tokens * heads * width}, 6), dy = numbers({tokens * heads * width}, 7);
  std::vector<float> inv_freq;
  for (int f = 0; f < pairs; ++f) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(f) / pairs));
  std::vector<int> positions;
  for (int t = 0; t < tokens; ++t) positions.push_back(own_positions ? (t * 37 + 11) % 50 : offset + t % length);
  std::vector<float> y(x.size()), dx(x.size());
  const auto run = [&](const std::vector<float>& from, float sign, std::vector<float>& to) {
    launch((tokens * (pairs / n) + kThreads - 1) / kThreads, kThreads, [&] {
      of_rotations::lquant::rotate<float, interleaved, n>(from.data(), inv_freq.data(), own_positions ? positions.data() : nullptr, offset, magnitude,
                                                          sign, tokens, length, heads, width, pairs, to.data());
    });
  };
  run(x, 1, y);
  run(dy, -1, dx);
  const auto rotate = [&](const Values& v) { return oracle::rope(v, wide(inv_freq), positions, heads, width, magnitude, interleaved); };
  const auto want = rotate(wide(x)), gradient = numeric_gradient(rotate, wide(x), wide(dy));
  // An angle of at most 50 is rounded once, sine and cosine to some units, the rest thrice; of numbers up to 5.
  const double bound = (50 + 16) * kF32 * magnitude * 10;
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(y[i], want[i], static_cast<int>(i % width) < 2 * pairs ? bound : 0) << i;
    ASSERT_NEAR(dx[i], gradient[i], bound + kDifference) << i;
  }
}

TEST_F(NormText, RotationsAndTheirGradientsMatchTheOracle) {
  for (const bool own_positions : {false, true}) {
    rotations_follow<false, 2>(12, 4, own_positions);
    rotations_follow<false, 1>(7, 3, own_positions);
    rotations_follow<true, 2>(12, 4, own_positions);
    rotations_follow<true, 1>(7, 3, own_positions);
  }
}

}  // namespace
}  // namespace lquant::kernels
