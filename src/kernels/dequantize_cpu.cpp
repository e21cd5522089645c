// Each chunk of 32 codes is spread into bytes, then one vectorised loop makes numbers of it; both stay in registers and the
// first-level cache, so the speed is that of writing W to memory. Rounding the product to the scales' dtype before the sum is what
// MLX's CPU fallback does (two ops, each with a result of that dtype), hence no fused multiply-add here.
#include "kernels/multiversion.h"
LQUANT_EXACT_ARITHMETIC

#include "kernels/bits.h"
#include "kernels/dequantize_loops.h"
#include "kernels/parallel.h"
#include "kernels/storage.h"

namespace lquant::kernels::cpu {
namespace {

// Below this many weights a thread takes longer to wake than to do the work (tens of microseconds).
constexpr std::int64_t kGrain = 1 << 16;

template <class S, class O>
LQUANT_INLINE void dequantize_chunk(const std::uint8_t* codes, float scale, float bias, typename O::Bits* out) {
  for (int i = 0; i < kChunk; ++i) out[i] = O::store(rounded<S>(rounded<S>(scale * static_cast<float>(codes[i])) + bias));
}

struct Groups {
  const std::uint32_t* codes;
  int bits, group_size;
  std::int64_t begin, end;

  LQUANT_INLINE const std::uint32_t* words(std::int64_t group) const { return codes + group * (group_size / kChunk * bits); }
};

constexpr int kMaxGroup = 128;

template <class S, class O>
LQUANT_INLINE void dequantize_groups(const Groups& g, const typename S::Bits* scales, const typename S::Bits* biases, typename O::Bits* out) {
  alignas(64) std::uint8_t codes[kMaxGroup];
  for (auto i = g.begin; i < g.end; ++i) {
    spread_codes(g.words(i), codes, g.group_size, g.bits);
    const float scale = S::load(scales[i]), bias = S::load(biases[i]);
    for (int j = 0; j < g.group_size; j += kChunk) dequantize_chunk<S, O>(codes + j, scale, bias, out + i * g.group_size + j);
  }
}

LQUANT_MULTIVERSION void dequantize_range(const Groups& g, const mx::array& scales, const mx::array& biases, mx::array& out) {
  with_storage(scales.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA {
    with_storage(out.dtype(), [&](auto o) LQUANT_INLINE_LAMBDA {
      using S = decltype(s);
      using O = decltype(o);
      dequantize_groups<S, O>(g, scales.data<typename S::Bits>(), biases.data<typename S::Bits>(), out.data<typename O::Bits>());
    });
  });
}

template <class W, class S>
LQUANT_INLINE void gradient_groups(const Groups& g, const typename W::Bits* gradient, typename S::Bits* d_scales, typename S::Bits* d_biases) {
  alignas(64) std::uint8_t codes[kMaxGroup];
  for (auto i = g.begin; i < g.end; ++i) {
    spread_codes(g.words(i), codes, g.group_size, g.bits);
    const auto* dw = gradient + i * g.group_size;
    // One partial sum a lane: the order of additions is the same on every processor.
    alignas(64) float scale_sums[kChunk] = {}, bias_sums[kChunk] = {};
    for (int j = 0; j < g.group_size; j += kChunk) {
      for (int k = 0; k < kChunk; ++k) {
        const float d = W::load(dw[j + k]);
        scale_sums[k] += d * static_cast<float>(codes[j + k]);
        bias_sums[k] += d;
      }
    }
    for (int half = kChunk / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) {
        scale_sums[k] += scale_sums[k + half];
        bias_sums[k] += bias_sums[k + half];
      }
    }
    d_scales[i] = S::store(scale_sums[0]);
    d_biases[i] = S::store(bias_sums[0]);
  }
}

LQUANT_MULTIVERSION void gradient_range(const Groups& g, const mx::array& gradient, mx::array& d_scales, mx::array& d_biases) {
  with_storage(gradient.dtype(), [&](auto w) LQUANT_INLINE_LAMBDA {
    with_storage(d_scales.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA {
      using W = decltype(w);
      using S = decltype(s);
      using Bits = typename S::Bits;
      gradient_groups<W, S>(g, gradient.data<typename W::Bits>(), d_scales.data<Bits>(), d_biases.data<Bits>());
    });
  });
}

LQUANT_MULTIVERSION void unpack_range(const std::uint32_t* words, std::uint8_t* codes, std::int64_t count, int bits) {
  spread_codes(words, codes, count, bits);
}

LQUANT_MULTIVERSION void pack_range(const std::uint8_t* codes, std::uint32_t* words, std::int64_t count, int bits) {
  squeeze_codes(codes, words, count, bits);
}

}  // namespace

void dequantize_affine(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size, mx::array& out) {
  parallel_for(static_cast<std::int64_t>(scales.size()), kGrain / group_size, [&](std::int64_t begin, std::int64_t end) {
    dequantize_range({codes.data<std::uint32_t>(), bits, group_size, begin, end}, scales, biases, out);
  });
}

void dequantize_affine_gradient(const mx::array& codes, const mx::array& gradient, int bits, int group_size, mx::array& d_scales,
                                mx::array& d_biases) {
  parallel_for(static_cast<std::int64_t>(d_scales.size()), kGrain / group_size, [&](std::int64_t begin, std::int64_t end) {
    gradient_range({codes.data<std::uint32_t>(), bits, group_size, begin, end}, gradient, d_scales, d_biases);
  });
}

void unpack_codes(const mx::array& codes, int bits, mx::array& out) {
  parallel_for(static_cast<std::int64_t>(out.size()) / kChunk, kGrain / kChunk, [&](std::int64_t begin, std::int64_t end) {
    unpack_range(codes.data<std::uint32_t>() + begin * bits, out.data<std::uint8_t>() + begin * kChunk, (end - begin) * kChunk, bits);
  });
}

void pack_codes(const mx::array& codes, int bits, mx::array& out) {
  parallel_for(static_cast<std::int64_t>(codes.size()) / kChunk, kGrain / kChunk, [&](std::int64_t begin, std::int64_t end) {
    pack_range(codes.data<std::uint8_t>() + begin * kChunk, out.data<std::uint32_t>() + begin * bits, (end - begin) * kChunk, bits);
  });
}

}  // namespace lquant::kernels::cpu
