// The CUDA text of recurrent layers, run thread by thread on the CPU (cuda_on_host.h): a state that goes from chunk to chunk, a few taps of each
// channel, in both directions.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <vector>

#include "kernels/cuda_text_testing.h"
#include "kernels/elementwise_testing.h"
#include "oracle/kernels_causal_conv.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-function"
// clang-format off: numbers.cu stands first, as it does before every kernel
namespace of_carries {
#include "kernels/numbers.cu"
#include "kernels/chunk_carry.cu"
}  // namespace of_carries
namespace of_chunks {
#include "kernels/numbers.cu"
#include "kernels/delta_chunks.cu"
}  // namespace of_chunks
namespace of_taps {
#include "kernels/numbers.cu"
#include "kernels/causal_conv.cu"
}  // namespace of_taps
// clang-format on
#pragma GCC diagnostic pop

namespace lquant::kernels {
namespace {

namespace device = of_carries::lquant;
using cuda_on_host::floats, cuda_on_host::launch;

class CarryText : public cuda_on_host::OnCpu {};

std::vector<float> normal(int count, std::uint64_t seed, float deviation) {
  return floats(mx::random::normal({count}, mx::float32, 0, deviation, mx::random::key(seed)));
}

/// The last block of columns is partly empty.
template <bool backward>
void steps_follow(bool each_key) {
  constexpr int groups = 2, chunks = 3, length = 5, keys = 8, values = 20, threads = 64;
  constexpr int all = groups * chunks, parts = 2;
  const auto x = normal(all * length * keys, 1, 0.3f), y = normal(all * length * keys, 2, 0.3f), kept = normal(all * (each_key ? keys : 1), 3, 0.5f),
             first = normal(all * length * values, 4, 1), added = normal(all * keys * values, 5, 1), start = normal(groups * keys * values, 6, 1);
  std::vector<float> corrected(first.size()), states(added.size()), last(start.size());
  std::vector<float4> shared((2 * length * (keys + device::kPadding) + (keys + length) * device::kColumns) / 4);
  launch(groups * parts, threads, [&] {
    device::carry<backward>(reinterpret_cast<float*>(shared.data()), x.data(), y.data(), kept.data(), first.data(), added.data(), start.data(),
                            chunks, length, keys, values, each_key, corrected.data(), states.data(), last.data());
  });
  const double sign = backward ? 1 : -1;
  for (int g = 0; g < groups; ++g) {
    std::vector<double> state(start.begin() + g * keys * values, start.begin() + (g + 1) * keys * values);
    // Numbers stay below 20; a chunk makes some 13 roundings of a number, whose errors the next ones at most double.
    const double bound = 20 * 13 * std::ldexp(1, -24) * (1 << chunks);
    for (int step = 0; step < chunks; ++step) {
      const int n = g * chunks + (backward ? chunks - 1 - step : step);
      std::vector<double> c(length * values), next(state.size());
      for (int i = 0; i < keys * values; ++i) ASSERT_NEAR(states[n * keys * values + i], state[i], bound) << "state " << n;
      for (int r = 0; r < length; ++r)
        for (int v = 0; v < values; ++v) {
          double& sum = c[r * values + v] = first[(n * length + r) * values + v];
          for (int d = 0; d < keys; ++d) sum += sign * x[(n * length + r) * keys + d] * state[d * values + v];
          ASSERT_NEAR(corrected[(n * length + r) * values + v], sum, bound) << "chunk " << n;
        }
      for (int d = 0; d < keys; ++d)
        for (int v = 0; v < values; ++v) {
          double sum = kept[each_key ? n * keys + d : n] * state[d * values + v] + (backward ? added[(n * keys + d) * values + v] : 0);
          for (int r = 0; r < length; ++r) sum -= sign * y[(n * length + r) * keys + d] * c[r * values + v];
          ASSERT_LT(std::abs(sum), 20);
          next[d * values + v] = sum;
        }
      state = next;
    }
    for (int i = 0; i < keys * values; ++i) ASSERT_NEAR(last[g * keys * values + i], state[i], bound);
  }
}

TEST_F(CarryText, ForwardFollowsTheFormula) {
  steps_follow<false>(false);
  steps_follow<false>(true);
}
TEST_F(CarryText, BackwardFollowsTheFormula) {
  steps_follow<true>(false);
  steps_follow<true>(true);
}

TEST_F(CarryText, DecaysAndTheirGradientFollowTheFormula) {
  constexpr int chunks = 2, threads = 96;
  for (const int length : {5, 64}) {
    auto logs = normal(chunks * length, 21, 0.5f);
    for (auto& x : logs) x = -std::abs(x);
    const auto dbetween = normal(chunks * length * length, 22, 1), dfront = normal(chunks * length, 23, 1);
    std::vector<float> between(dbetween.size()), front(dfront.size()), dlogs(logs.size());
    launch(chunks, threads, [&] { of_chunks::lquant::decays(logs.data(), length, between.data(), front.data()); });
    launch(chunks, threads,
           [&] { of_chunks::lquant::decay_gradients(between.data(), front.data(), dbetween.data(), dfront.data(), length, dlogs.data()); });
    for (int n = 0; n < chunks; ++n) {
      const auto sum = [&](int first, int last) {  // of the logarithms
        double s = 0;
        for (int t = first; t <= last; ++t) s += logs[n * length + t];
        return s;
      };
      std::vector<double> gradient(length), size(length);
      for (int i = 0; i < length; ++i) {
        for (int j = -1; j < length; ++j) {
          const double want = j > i ? 0 : std::exp(sum(j + 1, i)), got = j < 0 ? front[n * length + i] : between[(n * length + i) * length + j];
          const double slope = j < 0 ? dfront[n * length + i] : dbetween[(n * length + i) * length + j];
          // The sum is off by its roundings, `length` of a number of at most its size, and so is the logarithm of the result.
          ASSERT_NEAR(got, want, want * (length * -sum(j + 1, i) + 4) * testing::kF32) << i << ", " << j;
          for (int t = j + 1; t <= i; ++t) gradient[t] += want * slope, size[t] += std::abs(want * slope);
        }
      }
      for (int t = 0; t < length; ++t)
        ASSERT_NEAR(dlogs[n * length + t], gradient[t], (3 * length + 4 + length * -sum(0, length - 1)) * testing::kF32 * size[t]);
    }
  }
}

TEST_F(CarryText, InversesSubstitute) {
  constexpr int count = 2, threads = 96;
  for (const int length : {5, 64}) {
    const auto a = normal(count * length * length, 31, 0.2f);
    std::vector<float> x(a.size());
    launch(count, threads, [&] { of_chunks::lquant::unit_inverse(a.data(), length, x.data()); });
    for (int n = 0; n < count; ++n)
      for (int i = 0; i < length; ++i)
        for (int j = 0; j < length; ++j) {
          // Row i of (I + a) · x; what is above a's diagonal is not read. A row's sums were rounded once a term.
          const auto at = [&](int row) { return double{x[(n * length + row) * length + j]}; };
          double sum = at(i), size = std::abs(at(i));
          for (int k = 0; k < i; ++k) sum += a[(n * length + i) * length + k] * at(k), size += std::abs(a[(n * length + i) * length + k] * at(k));
          ASSERT_NEAR(sum, i == j ? 1 : 0, (i + 1) * testing::kF32 * (size + 1)) << i << ", " << j;
        }
  }
}

template <int n, int count>
void taps_follow(int tokens, int channels, const std::vector<std::int32_t>& segments) {
  const oracle::ConvSize size{2, tokens, channels, count};
  const int all = 2 * tokens * channels;
  const auto x = normal(all, 11, 1), dy = normal(all, 12, 1), taps = normal(channels * count, 13, 1);
  std::vector<float> y(all), dx(all);
  const auto run = [&]<bool backward>(const std::vector<float>& from, std::vector<float>& to) {
    const int threads = 2 * ((tokens + of_taps::lquant::kRun - 1) / of_taps::lquant::kRun) * (channels / n);
    launch((threads + 63) / 64, 64, [&] {
      of_taps::lquant::causal_conv<float, n, count, backward>(from.data(), taps.data(), segments.empty() ? nullptr : segments.data(), 2, tokens,
                                                              channels, to.data());
    });
  };
  run.template operator()<false>(x, y);
  run.template operator()<true>(dy, dx);
  const testing::Values xd(x.begin(), x.end()), tapsd(taps.begin(), taps.end()), dyd(dy.begin(), dy.end());
  testing::Values magnitudes;
  const auto want = oracle::causal_conv(size, xd, tapsd, segments, &magnitudes);
  const auto gradient = testing::numeric_gradient([&](const testing::Values& v) { return oracle::causal_conv(size, v, tapsd, segments); }, xd, dyd);
  // As many roundings of products and sums as there are taps; the gradient's terms are of size 16 at most.
  for (int i = 0; i < all; ++i) {
    ASSERT_NEAR(y[i], want[i], 2 * count * testing::kF32 * magnitudes[i]) << "y " << i;
    ASSERT_NEAR(dx[i], gradient[i], testing::kDifference + 2 * count * testing::kF32 * 16 * count) << "dx " << i;
  }
}

TEST_F(CarryText, TapsFollowTheOracle) {
  taps_follow<1, 4>(21, 3, {});
  taps_follow<4, 4>(3, 8, {});
  std::vector<std::int32_t> texts;  // of 1 to 6 tokens, borders in and between the runs of threads
  for (int i = 0; i < 2 * 37; ++i) texts.push_back(static_cast<std::int32_t>(std::sqrt(8.0 * (i % 37))));
  taps_follow<4, 3>(37, 4, texts);
}

}  // namespace
}  // namespace lquant::kernels
