// The arithmetic follows MLX's step by step, for equal bits: affine groups are quantized in f32 with the scale before it is rounded to
// the weights' dtype; the mx and nv modes round every intermediate result to the weights' dtype, as a chain of MLX ops does.
#include "kernels/multiversion.h"
LQUANT_EXACT_ARITHMETIC

#include <cmath>

#include "codec/affine_rule.h"
#include "codec/quantize_loops.h"
#include "codec/small_floats.h"
#include "kernels/bits.h"
#include "kernels/parallel.h"
#include "kernels/storage.h"

namespace lquant::codec::cpu {
namespace {

using kernels::kChunk;
using kernels::rounded;

constexpr int kMaxGroup = 128;
// Below this many weights a thread takes longer to wake than to do the work.
constexpr std::int64_t kGrain = 1 << 15;

template <class S>
LQUANT_INLINE void affine_groups(const typename S::Bits* w, std::uint32_t* words, typename S::Bits* scales, typename S::Bits* biases, int bits,
                                 int group, std::int64_t begin, std::int64_t end) {
  alignas(64) float values[kMaxGroup];
  alignas(64) std::uint8_t codes[kMaxGroup];
  const float top = static_cast<float>((1 << bits) - 1);
  for (auto g = begin; g < end; ++g) {
    for (int j = 0; j < group; ++j) values[j] = S::load(w[g * group + j]);
    const auto rule = affine_rule(range_of(values, group), top);
    affine_codes(values, group, rule, top, codes);
    kernels::squeeze_codes(codes, words + g * (group / kChunk * bits), group, bits);
    scales[g] = S::store(rule.scale);
    biases[g] = S::store(rule.bias);
  }
}

LQUANT_MULTIVERSION void affine_range(const mx::array& w, std::vector<mx::array>& out, const Format& f, std::int64_t begin, std::int64_t end) {
  kernels::with_storage(w.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA {
    using S = decltype(s);
    using Bits = typename S::Bits;
    affine_groups<S>(w.data<Bits>(), out[0].data<std::uint32_t>(), out[1].data<Bits>(), out[2].data<Bits>(), f.bits, f.group_size, begin, end);
  });
}

/// A group's scale: its byte, and the value that the weights are divided by.
struct FloatScale {
  std::uint8_t byte;
  float value;
};

template <class S>
LQUANT_INLINE FloatScale float_scale(float largest, Mode mode) {
  const float ideal = rounded<S>(largest / (mode == Mode::mxfp8 ? 448.0f : 6.0f));
  if (mode == Mode::nvfp4) {
    const auto byte = to_e4m3(ideal);
    return {byte, rounded<S>(from_e4m3(byte))};
  }
  // E8M0 holds 2^(byte − 127); rounded up, so that the largest weight fits.
  const int exponent = ideal == 0 ? 0 : static_cast<int>(std::ceil(std::log2(ideal)));
  return {static_cast<std::uint8_t>(exponent + 127), rounded<S>(std::ldexp(1.0f, exponent))};
}

/// The first of the nearest by differences rounded to S, where the shortcut of to_e2m1 does not hold: a value far outside of the range
/// (an nvfp4 scale ends at 448), infinite or NaN.
template <class S>
std::uint8_t search_e2m1(float x) {
  int best = 0;
  float least = rounded<S>(std::abs(x));
  for (int i = 1; i < 16; ++i) {
    const float distance = std::abs(rounded<S>(x - kE2m1[i]));
    if (distance < least) best = i, least = distance;
  }
  return static_cast<std::uint8_t>(best);
}

template <class S>
LQUANT_INLINE void float_group(const typename S::Bits* w, int group, Mode mode, std::uint8_t* codes, std::uint8_t* scale_byte) {
  alignas(64) float values[32];
  float largest = 0;
  for (int j = 0; j < group; ++j) {
    values[j] = S::load(w[j]);
    const float magnitude = std::abs(values[j]);
    largest = largest < magnitude ? magnitude : largest;
  }
  const auto scale = float_scale<S>(largest, mode);
  *scale_byte = scale.byte;
  for (int j = 0; j < group; ++j) values[j] = rounded<S>(values[j] / scale.value);
  if (mode == Mode::mxfp8) {
    for (int j = 0; j < group; ++j) codes[j] = to_e4m3(values[j]);
    return;
  }
  bool near = true;
  for (int j = 0; j < group; ++j) {
    codes[j] = to_e2m1(values[j]);
    near &= std::abs(values[j]) <= 12;
  }
  // Differences are taken in f32 for nvfp4, where MLX multiplies by a global scale of f32, and in the weights' dtype otherwise.
  for (int j = 0; !near && j < group; ++j) codes[j] = mode == Mode::nvfp4 ? search_e2m1<kernels::Float32>(values[j]) : search_e2m1<S>(values[j]);
}

template <class S>
LQUANT_INLINE void float_groups(const typename S::Bits* w, std::uint32_t* words, std::uint8_t* scales, const Format& f, std::int64_t begin,
                                std::int64_t end) {
  alignas(64) std::uint8_t codes[32];
  for (auto g = begin; g < end; ++g) {
    float_group<S>(w + g * f.group_size, f.group_size, f.mode, codes, scales + g);
    kernels::squeeze_codes(codes, words + g * (f.group_size * f.bits / 32), f.group_size, f.bits);
  }
}

LQUANT_MULTIVERSION void float_range(const mx::array& w, std::vector<mx::array>& out, const Format& f, std::int64_t begin, std::int64_t end) {
  kernels::with_storage(w.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA {
    using S = decltype(s);
    float_groups<S>(w.data<typename S::Bits>(), out[0].data<std::uint32_t>(), out[1].data<std::uint8_t>(), f, begin, end);
  });
}

template <class O>
LQUANT_INLINE void float_values(const std::uint32_t* words, const std::uint8_t* scales, const Format& f, typename O::Bits* out, std::int64_t begin,
                                std::int64_t end) {
  alignas(64) std::uint8_t codes[32];
  for (auto g = begin; g < end; ++g) {
    kernels::spread_codes(words + g * (f.group_size * f.bits / 32), codes, f.group_size, f.bits);
    const float scale = rounded<O>(f.mode == Mode::nvfp4 ? from_e4m3(scales[g]) : std::ldexp(1.0f, scales[g] - 127));
    auto* to = out + g * f.group_size;
    if (f.mode == Mode::mxfp8) {
      for (int j = 0; j < f.group_size; ++j) to[j] = O::store(from_e4m3(codes[j]) * scale);
    } else {
      for (int j = 0; j < f.group_size; ++j) to[j] = O::store(kE2m1[codes[j]] * scale);
    }
  }
}

LQUANT_MULTIVERSION void float_values_range(const mx::array& codes, const mx::array& scales, const Format& f, mx::array& out, std::int64_t begin,
                                            std::int64_t end) {
  kernels::with_storage(out.dtype(), [&](auto o) LQUANT_INLINE_LAMBDA {
    using O = decltype(o);
    float_values<O>(codes.data<std::uint32_t>(), scales.data<std::uint8_t>(), f, out.data<typename O::Bits>(), begin, end);
  });
}

}  // namespace

void quantize(const mx::array& w, const Format& format, std::vector<mx::array>& outputs) {
  const int group = format.group_size;
  kernels::parallel_for(static_cast<std::int64_t>(w.size()) / group, kGrain / group, [&](std::int64_t begin, std::int64_t end) {
    format.mode == Mode::affine ? affine_range(w, outputs, format, begin, end) : float_range(w, outputs, format, begin, end);
  });
}

void dequantize_float(const mx::array& codes, const mx::array& scales, const Format& format, mx::array& out) {
  const int group = format.group_size;
  kernels::parallel_for(static_cast<std::int64_t>(scales.size()), kGrain / group,
                        [&](std::int64_t begin, std::int64_t end) { float_values_range(codes, scales, format, out, begin, end); });
}

}  // namespace lquant::codec::cpu
