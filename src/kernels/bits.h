#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/multiversion.h"

// MLX's bit packing: a row of codes is one little-endian string of bits, code i in bits i·b … i·b + b − 1. Codes of 3, 5 and 6
// bits so straddle the u32 words. Eight codes always fill `bits` whole bytes, which is the unit here.
namespace lquant::kernels {

/// Every affine group size is a multiple of it, and so many codes fill `bits` whole words.
inline constexpr int kChunk = 32;

/// Eight codes from the low 8·bits of `packed`, each in a byte of its own. Halves, quarters, then eighths are moved apart:
/// three shifts for eight codes, on any processor.
template <int bits>
LQUANT_INLINE std::uint64_t spread(std::uint64_t packed) {
  if constexpr (bits == 8) return packed;
  constexpr std::uint64_t code = ((1ull << bits) - 1) * 0x0001000100010001ull, pair = ((1ull << (2 * bits)) - 1) * 0x0000000100000001ull;
  constexpr std::uint64_t four = (1ull << (4 * bits)) - 1;
  packed = (packed & four) | ((packed & (four << (4 * bits))) << (32 - 4 * bits));
  packed = (packed & pair) | ((packed & (pair << (2 * bits))) << (16 - 2 * bits));
  return (packed & code) | ((packed & (code << bits)) << (8 - bits));
}

/// The inverse of spread: bits above `bits` of each byte must be zero.
template <int bits>
LQUANT_INLINE std::uint64_t squeeze(std::uint64_t bytes) {
  if constexpr (bits == 8) return bytes;
  constexpr std::uint64_t code = ((1ull << bits) - 1) * 0x0001000100010001ull, pair = ((1ull << (2 * bits)) - 1) * 0x0000000100000001ull;
  constexpr std::uint64_t four = (1ull << (4 * bits)) - 1;
  bytes = (bytes & code) | ((bytes >> (8 - bits)) & (code << bits));
  bytes = (bytes & pair) | ((bytes >> (16 - 2 * bits)) & (pair << (2 * bits)));
  return (bytes & four) | ((bytes >> (32 - 4 * bits)) & (four << (4 * bits)));
}

/// Eight codes, number i of the four eights of a chunk, put together from the words that hold them: a copy of 3, 5 or 6 bytes would
/// wait for its own pieces to reach memory.
template <int bits, int i>
LQUANT_INLINE std::uint64_t eight_codes(const std::uint32_t* words) {
  constexpr int word = i * 8 * bits / 32, shift = i * 8 * bits % 32;
  std::uint64_t packed = words[word];
  if constexpr (shift + 8 * bits > 32) packed |= static_cast<std::uint64_t>(words[word + 1]) << 32;
  packed >>= shift;
  if constexpr (bits < 8) packed &= (1ull << (8 * bits % 64)) - 1;
  return packed;
}

// GCC 12 unrolls the loops below past the end of their callers' buffers, which no count reaches, and warns of it.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#endif

template <int bits>
LQUANT_INLINE void store_eight(std::uint64_t packed, std::uint8_t* codes) {
  packed = spread<bits>(packed);
  std::memcpy(codes, &packed, 8);
}

template <int bits>
LQUANT_INLINE void spread_count(const std::uint32_t* words, std::uint8_t* codes, std::int64_t count) {
  if constexpr ((bits & (bits - 1)) == 0) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(words);
    for (std::int64_t i = 0; i < count / 8; ++i) {
      std::uint64_t packed = 0;
      std::memcpy(&packed, bytes + i * bits, bits);
      store_eight<bits>(packed, codes + i * 8);
    }
  } else {
    for (std::int64_t i = 0; i < count / kChunk; ++i) {
      store_eight<bits>(eight_codes<bits, 0>(words + i * bits), codes + i * kChunk);
      store_eight<bits>(eight_codes<bits, 1>(words + i * bits), codes + i * kChunk + 8);
      store_eight<bits>(eight_codes<bits, 2>(words + i * bits), codes + i * kChunk + 16);
      store_eight<bits>(eight_codes<bits, 3>(words + i * bits), codes + i * kChunk + 24);
    }
  }
}

template <int bits>
LQUANT_INLINE void squeeze_count(const std::uint8_t* codes, std::uint32_t* words, std::int64_t count) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(words);
  for (std::int64_t i = 0; i < count / 8; ++i) {
    std::uint64_t eight;
    std::memcpy(&eight, codes + i * 8, 8);
    eight = squeeze<bits>(eight);
    std::memcpy(bytes + i * bits, &eight, bits);
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/// Unpacks `count` codes, a multiple of 8, and of kChunk for 3, 5 and 6 bits; bits is 2, 3, 4, 5, 6 or 8 (others do nothing).
LQUANT_INLINE void spread_codes(const std::uint32_t* words, std::uint8_t* codes, std::int64_t count, int bits) {
  switch (bits) {
    case 2:
      return spread_count<2>(words, codes, count);
    case 3:
      return spread_count<3>(words, codes, count);
    case 4:
      return spread_count<4>(words, codes, count);
    case 5:
      return spread_count<5>(words, codes, count);
    case 6:
      return spread_count<6>(words, codes, count);
    case 8:
      return spread_count<8>(words, codes, count);
  }
}

/// Packs `count` codes, a multiple of 8, each below 2^bits.
LQUANT_INLINE void squeeze_codes(const std::uint8_t* codes, std::uint32_t* words, std::int64_t count, int bits) {
  switch (bits) {
    case 2:
      return squeeze_count<2>(codes, words, count);
    case 3:
      return squeeze_count<3>(codes, words, count);
    case 4:
      return squeeze_count<4>(codes, words, count);
    case 5:
      return squeeze_count<5>(codes, words, count);
    case 6:
      return squeeze_count<6>(codes, words, count);
    case 8:
      return squeeze_count<8>(codes, words, count);
  }
}

}  // namespace lquant::kernels
