// The CUDA text of mixtures of experts, run thread by thread on the CPU (cuda_on_host.h): routing with its gradients, and products by expert.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <vector>

#include "kernels/cuda_text_testing.h"
#include "oracle/kernels_moe.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-function"
// clang-format off: numbers.cu stands first, as it does before every kernel
namespace of_mixtures {
#include "kernels/numbers.cu"
#include "kernels/tensor_core_on_host.h"
#include "kernels/grouped_product.cu"
#include "kernels/moe.cu"
}  // namespace of_mixtures
// clang-format on
#pragma GCC diagnostic pop

namespace lquant::kernels {
namespace {

using cuda_on_host::floats, cuda_on_host::launch, cuda_on_host::values;
namespace mx = mlx::core;
namespace device = of_mixtures::lquant;
using B = device::bf16;

class MixtureText : public cuda_on_host::OnCpu {};

constexpr double kF32 = 0x1p-24;  // half the distance from 1 to the next number
constexpr double kBf16 = 0x1p-8;

std::vector<B> normal(int count, std::uint64_t seed) {
  const auto x = mx::astype(mx::random::normal({count}, mx::float32, 0, 1, mx::random::key(seed)), mx::bfloat16);
  const auto bits = values<std::uint16_t>(mx::view(x, mx::uint16));
  std::vector<B> out(bits.size());
  for (std::size_t i = 0; i < bits.size(); ++i) out[i].bits = bits[i];
  return out;
}
std::vector<double> doubles(const std::vector<B>& x) {
  std::vector<double> out;
  for (const auto& value : x) out.push_back(static_cast<float>(value));
  return out;
}

/// Σ_d a(i, d) b(d, j) with the sum of the terms' sizes; a result in bf16 is off by its rounding and `depth` roundings in f32 of those.
template <class A, class F>
void expect_sum(float got, int depth, const A& a, const F& b, const std::string& what) {
  double sum = 0, size = 0;
  for (int d = 0; d < depth; ++d) sum += a(d) * b(d), size += std::abs(a(d) * b(d));
  ASSERT_NEAR(got, sum, kBf16 * std::abs(sum) + (depth + 1) * kF32 * size) << what;
}

// Expert 0 has more rows than a tile, expert 1 none, expert 2 a few; the inner dimension is no multiple of what is loaded at once.
struct Products : MixtureText {
  static constexpr int kRows = 137, kExperts = 3, kOut = 24, kIn = 40, kThreads = 256;
  const std::vector<int> offsets{0, 130, 130, kRows};
  std::vector<uint4> shared = std::vector<uint4>(device::kStages * 2 * device::kTileChunks);
  const std::vector<B> x = normal(kRows * kIn, 1), w = normal(kExperts * kOut * kIn, 2), dy = normal(kRows * kOut, 3),
                       bias = normal(kExperts * kOut, 4);
  const std::vector<double> xd = doubles(x), wd = doubles(w), dyd = doubles(dy), biasd = doubles(bias);
  static constexpr int kRowTiles = kRows / device::kTile + kExperts;
};

TEST_F(Products, RowsMeetTheirExpertsMatrix) {
  std::vector<B> y(kRows * kOut);
  launch(kRowTiles, kThreads, [&] {
    device::rows_by_experts<B, true>(shared.data(), x.data(), w.data(), bias.data(), offsets.data(), kExperts, kRowTiles, kIn, kOut, y.data());
  });
  for (int e = 0; e < kExperts; ++e)
    for (int r = offsets[e]; r < offsets[e + 1]; ++r)
      for (int n = 0; n < kOut; ++n)
        expect_sum(
            static_cast<float>(y[r * kOut + n]), kIn + 1, [&](int d) { return d == kIn ? 1.0 : xd[r * kIn + d]; },
            [&](int d) { return d == kIn ? biasd[e * kOut + n] : wd[(e * kOut + n) * kIn + d]; }, "row " + std::to_string(r));
}

TEST_F(Products, GradientsOfRowsMeetTheTransposedMatrix) {
  std::vector<B> dx(kRows * kIn);
  launch(kRowTiles, kThreads, [&] {
    device::rows_by_experts<B, false>(shared.data(), dy.data(), w.data(), static_cast<const B*>(nullptr), offsets.data(), kExperts, kRowTiles, kOut,
                                      kIn, dx.data());
  });
  for (int e = 0; e < kExperts; ++e)
    for (int r = offsets[e]; r < offsets[e + 1]; ++r)
      for (int i = 0; i < kIn; ++i)
        expect_sum(
            static_cast<float>(dx[r * kIn + i]), kOut, [&](int d) { return dyd[r * kOut + d]; }, [&](int d) { return wd[(e * kOut + d) * kIn + i]; },
            "row " + std::to_string(r));
}

TEST_F(Products, GradientsOfMatricesAreSumsOverTheirRows) {
  std::vector<B> dw(w.size(), B(7.0f));
  launch(kExperts, kThreads, [&] { device::gradients_by_experts<B>(shared.data(), dy.data(), x.data(), offsets.data(), kIn, kOut, dw.data()); });
  for (int e = 0; e < kExperts; ++e)
    for (int n = 0; n < kOut; ++n)
      for (int i = 0; i < kIn; ++i)
        expect_sum(
            static_cast<float>(dw[(e * kOut + n) * kIn + i]), offsets[e + 1] - offsets[e], [&](int d) { return dyd[(offsets[e] + d) * kOut + n]; },
            [&](int d) { return xd[(offsets[e] + d) * kIn + i]; }, "expert " + std::to_string(e));
}

std::vector<int> choices(int count, int experts) {
  std::vector<int> all;
  for (int i = 0; i < count; ++i) all.push_back((i * 7 + i / 3) % (experts - 1));  // the last expert starves
  return all;
}

TEST_F(MixtureText, SortsStably) {
  const int experts = 5;
  // Fewer choices than warps, and more than all lanes look at once.
  for (const int count : {7, 1100}) {
    const auto chosen = choices(count, experts);
    std::vector<int> order(count, -1), offsets(experts + 1, -1);
    launch(experts + 1, 1024, [&] { device::sort_by_expert(chosen.data(), count, order.data(), offsets.data()); });
    const auto want = oracle::sort_by_expert(chosen, experts);
    EXPECT_EQ(order, want.order);
    EXPECT_EQ(offsets, want.offsets);
  }
}

template <int n>
void combination_follows(int width) {
  const int tokens = 5, k = 3, count = tokens * k;
  const auto routed = oracle::sort_by_expert(choices(count, 4), 4);
  const auto y = normal(count * width, 11), dout = normal(tokens * width, 12);
  const auto yd = doubles(y), doutd = doubles(dout);
  const auto weights = floats(mx::random::normal({count}, mx::float32, 0, 1, mx::random::key(13)));
  std::vector<int> rows(count, -1);
  launch(1, 64, [&] { device::invert(routed.order.data(), count, rows.data()); });
  for (int r = 0; r < count; ++r) EXPECT_EQ(rows[routed.order[r]], r);

  std::vector<B> out(tokens * width), plain(tokens * width), dy(count * width);
  std::vector<float> dweights(count);
  const int blocks = (tokens * width / n + 63) / 64;
  launch(blocks, 64, [&] { device::combine<B, n>(y.data(), weights.data(), rows.data(), tokens, k, width, out.data()); });
  launch(blocks, 64, [&] { device::combine<B, n>(y.data(), nullptr, rows.data(), tokens, k, width, plain.data()); });
  launch((count * 32 + 63) / 64, 64, [&] {
    device::combine_gradients<B, n>(y.data(), weights.data(), routed.order.data(), dout.data(), count, k, width, dy.data(), dweights.data());
  });
  for (int t = 0; t < tokens; ++t)
    for (int c = 0; c < width; ++c) {
      const auto value = [&](int j) { return yd[rows[t * k + j] * width + c]; };
      expect_sum(static_cast<float>(out[t * width + c]), k, [&](int j) { return double{weights[t * k + j]}; }, value, "combined");
      expect_sum(static_cast<float>(plain[t * width + c]), k, [](int) { return 1.0; }, value, "summed");
    }
  for (int r = 0; r < count; ++r) {
    const int choice = routed.order[r], token = choice / k;
    double dot = 0, size = 0;
    for (int c = 0; c < width; ++c) {
      const double slope = doutd[token * width + c];
      dot += yd[r * width + c] * slope, size += std::abs(yd[r * width + c] * slope);
      expect_sum(
          static_cast<float>(dy[r * width + c]), 1, [&](int) { return double{weights[choice]}; }, [&](int) { return slope; }, "gradient of a row");
    }
    EXPECT_NEAR(dweights[choice], dot, (width + 1) * kF32 * size);
  }
}

TEST_F(MixtureText, CombinesRowsWithTheirGradients) {
  combination_follows<1>(37);
  combination_follows<8>(72);
}

}  // namespace
}  // namespace lquant::kernels
