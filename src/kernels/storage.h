#pragma once

#include <mlx/dtype.h>

#include <bit>
#include <cstdint>
#include <stdexcept>

#include "kernels/multiversion.h"

// The float dtypes of weights and scales as loops see them: values are floats, memory holds Bits. Conversions round to nearest
// even and map NaN as MLX does. They are branch-free, so that loops over them vectorise.
namespace lquant::kernels {

struct Float32 {
  using Bits = float;
  static LQUANT_INLINE float load(Bits b) { return b; }
  static LQUANT_INLINE Bits store(float x) { return x; }
};

struct BFloat16 {
  using Bits = std::uint16_t;
  static LQUANT_INLINE float load(Bits b) { return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16); }
  static LQUANT_INLINE Bits store(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const auto rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return static_cast<Bits>(x == x ? rounded : 0x7fc0u);
  }
};

struct Float16 {
  using Bits = std::uint16_t;
  static LQUANT_INLINE float load(Bits b) {
    const std::uint32_t magnitude = b & 0x7fffu, sign = (b & 0x8000u) << 16;
    // A half's exponent is biased by 15, a float's by 127; subnormals are made by subtracting the leading one of 0.5 + m·2^−24.
    const auto normal = (magnitude << 13) + ((magnitude >= 0x7c00u ? 224u : 112u) << 23);
    const auto small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(0x3f000000u | magnitude) - 0.5f);
    return std::bit_cast<float>((magnitude < 0x400u ? small : normal) | sign);
  }
  static LQUANT_INLINE Bits store(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const auto magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    const auto normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    const auto small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;  // one unit is 2^−24
    auto half = magnitude < (113u << 23) ? small : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // from 65520 on: infinity
    half = magnitude > 0x7f800000u ? 0x7d00u : half;   // MLX's NaN
    return static_cast<Bits>(half | sign);
  }
};

/// x as it reads back from storage.
template <class Storage>
LQUANT_INLINE float rounded(float x) {
  return Storage::load(Storage::store(x));
}

/// Calls f with the storage type of a dtype: with_storage(dtype, [&](auto storage) LQUANT_INLINE_LAMBDA { using T = decltype(storage); … }).
template <class F>
LQUANT_INLINE auto with_storage(mlx::core::Dtype dtype, F&& f) {
  switch (dtype.val()) {
    case mlx::core::Dtype::Val::float32:
      return f(Float32{});
    case mlx::core::Dtype::Val::bfloat16:
      return f(BFloat16{});
    case mlx::core::Dtype::Val::float16:
      return f(Float16{});
    default:
      throw std::invalid_argument("[kernels] float32, bfloat16 or float16 is needed here");
  }
}

}  // namespace lquant::kernels
