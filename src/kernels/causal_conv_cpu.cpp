// A token's channels are a row; a block of them is summed over the taps in registers. The gradient of x is the same sum, of the cotangents of the
// tokens behind. That of the taps, which nobody trains in a loop, is made by MLX's operations.
#include <mlx/mlx.h>

#include <algorithm>
#include <vector>

#include "kernels/causal_conv_paths.h"
#include "kernels/multiversion.h"
#include "kernels/parallel.h"
#include "kernels/primitive.h"
#include "kernels/storage.h"

namespace lquant::kernels {
namespace {

using std::int64_t;

struct Job {
  int64_t batch, tokens, channels, taps;
  const char* x;
  const float* weights;   ///< [taps, channels], that of the token itself first
  const int64_t* places;  ///< [batch, tokens]: how many tokens of its text stand before each
  bool forwards;          ///< sums over the tokens before, else over those behind
  char* out;
};

template <class T>
LQUANT_INLINE void rows(const Job& job, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 64;  // four vectors of sums
  using Bits = typename T::Bits;
  const auto* x = reinterpret_cast<const Bits*>(job.x);
  auto* out = reinterpret_cast<Bits*>(job.out);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t t = row % job.tokens;
    int64_t count = 1;  // of the taps that stand in this text
    while (count < job.taps && (job.forwards ? job.places[row] >= count : t + count < job.tokens && job.places[row + count] >= count)) ++count;
    const int64_t step = job.forwards ? -job.channels : job.channels;
    for (int64_t first = 0; first < job.channels; first += kBlock) {
      float sum[kBlock] = {};
      const int64_t width = std::min(kBlock, job.channels - first);
      const Bits* from = x + row * job.channels + first;
      for (int64_t tap = 0; tap < count; ++tap) {
        const float* w = job.weights + tap * job.channels + first;
        const Bits* source = from + tap * step;
        if (width == kBlock) {
          for (int64_t i = 0; i < kBlock; ++i) sum[i] += w[i] * T::load(source[i]);
        } else {
          for (int64_t i = 0; i < width; ++i) sum[i] += w[i] * T::load(source[i]);
        }
      }
      for (int64_t i = 0; i < width; ++i) out[row * job.channels + first + i] = T::store(sum[i]);
    }
  }
}

LQUANT_MULTIVERSION void run_rows(const Job& job, bool bf16, int64_t begin, int64_t end) {
  bf16 ? rows<BFloat16>(job, begin, end) : rows<Float32>(job, begin, end);
}

/// in: x (or a cotangent), taps, segments where there are any.
void convolve(const std::vector<mx::array>& in, bool forwards, mx::array& out) {
  const auto &x = in[0], &taps = in[1];
  Job job{x.shape(0), x.shape(1), x.shape(2), taps.shape(1), x.data<char>(), nullptr, nullptr, forwards, out.data<char>()};
  std::vector<float> weights(taps.size());
  for (int64_t c = 0; c < job.channels; ++c)
    for (int64_t k = 0; k < job.taps; ++k) weights[k * job.channels + c] = taps.data<float>()[c * job.taps + job.taps - 1 - k];
  const auto* segments = in.size() > 2 ? in[2].data<std::int32_t>() : nullptr;
  std::vector<int64_t> places(job.batch * job.tokens);
  for (int64_t row = 0; row < job.batch * job.tokens; ++row) {
    const bool begins = row % job.tokens == 0 || (segments && segments[row] != segments[row - 1]);
    places[row] = begins ? 0 : places[row - 1] + 1;
  }
  job.weights = weights.data();
  job.places = places.data();
  constexpr int64_t kGrain = 1 << 14;  // products, some 5 µs: what starting a thread costs
  parallel_for(job.batch * job.tokens, 1 + kGrain / (job.channels * job.taps),
               [&](int64_t begin, int64_t end) { run_rows(job, x.dtype() == mx::bfloat16, begin, end); });
}

}  // namespace

mx::array causal_conv_cpu(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments) {
  std::vector<mx::array> inputs{x, taps};
  if (segments) inputs.push_back(*segments);
  const auto compute = [](const std::vector<mx::array>& in, std::vector<mx::array>& out) { convolve(in, true, out[0]); };
  const auto vjp = [](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                      const std::vector<mx::array>&) {
    const auto segments = in.size() > 2 ? std::optional(in[2]) : std::nullopt;
    std::vector<mx::array> gradients;
    for (const int i : argnums) {
      if (i == 0) {
        auto own = in;
        own[0] = mx::astype(cotangents[0], in[0].dtype());
        gradients.push_back(make_op("causal_conv_vjp", own, {{in[0].shape(), in[0].dtype()}},
                                    [](const std::vector<mx::array>& in, std::vector<mx::array>& out) { convolve(in, false, out[0]); })[0]);
      } else {
        const auto of_taps = [&](const std::vector<mx::array>& taps) { return std::vector{causal_conv_mlx(in[0], taps[0], segments)}; };
        gradients.push_back(mx::vjp(of_taps, {in[1]}, {cotangents[0]}).second[0]);
      }
    }
    return gradients;
  };
  return make_op("causal_conv", inputs, {{x.shape(), x.dtype()}}, compute, vjp)[0];
}

}  // namespace lquant::kernels
