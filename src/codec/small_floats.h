#pragma once

#include <bit>
#include <cstdint>

#include "kernels/multiversion.h"

// The element and scale types of the OCP microscaling formats (MX specification 1.0) and of NVFP4, rounded as MLX does.
// Branch-free, so that loops over them vectorise.
namespace lquant::codec {

/// E4M3: sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities, largest value 448. Larger ones and NaN become 448.
LQUANT_INLINE std::uint8_t to_e4m3(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x), magnitude = u & 0x7fffffffu;
  const auto normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - (120u << 23)) >> 20;  // 120 = 127 − 7
  // Below 2^−6 the values are multiples of 2^−9, which is the last place of a float of 2^14.
  const auto small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - (141u << 23);
  auto code = magnitude < (121u << 23) ? small : normal;
  code = magnitude >= std::bit_cast<std::uint32_t>(448.0f) ? 0x7eu : code;
  return static_cast<std::uint8_t>(code | (u >> 31 << 7));
}

LQUANT_INLINE float from_e4m3(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7fu, sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
  const float small = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-9f;
  const auto normal = magnitude == 0x7fu ? 0x7fc00000u : (magnitude << 20) + (120u << 23);
  return std::bit_cast<float>((magnitude < 8 ? std::bit_cast<std::uint32_t>(small) : normal) | sign);
}

/// E2M1 by its code: sign and one of 0, ½, 1, 1½, 2, 3, 4, 6.
inline constexpr float kE2m1[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/// The nearest value's code; a tie goes to the smaller magnitude and what rounds to zero to +0: the first of the nearest in the order of
/// kE2m1. For |x| up to 12, where the differences to the two nearest are exact in every dtype.
LQUANT_INLINE std::uint8_t to_e2m1(float x) {
  const float m = x < 0 ? -x : x;
  const int code = (m > 0.25f) + (m > 0.75f) + (m > 1.25f) + (m > 1.75f) + (m > 2.5f) + (m > 3.5f) + (m > 5.0f);
  return static_cast<std::uint8_t>(code + ((x < 0 && code > 0) ? 8 : 0));
}

}  // namespace lquant::codec
