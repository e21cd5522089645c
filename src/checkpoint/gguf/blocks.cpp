// The layouts are those of ggml-common.h. In all of them a byte holds codes of values that lie half a block (or 32, 64 values) apart,
// because that is how vector registers take them apart. Products and sums must not be fused (see CMakeLists.txt): d · q − m is
// rounded twice in ggml, and so it is here.
#include "checkpoint/gguf/blocks.h"

#include <bit>
#include <cstring>

namespace lquant::checkpoint::gguf::blocks {
namespace {

constexpr std::size_t kSuper = 256;  // values in a block of the K types (QK_K)

template <class T>
T load(const std::uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

float half(const std::uint8_t* data) {
  const auto bits = load<std::uint16_t>(data);
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16, exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  // A subnormal half is a whole number of 2^-24; the product is exact.
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(static_cast<float>(fraction) * 0x1p-24f));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);  // 112 = 127 − 15, the exponents' biases
}

/// For types of 32 values: data is cut into blocks of `bytes`.
template <std::size_t bytes, class Body>
void each(const std::uint8_t* data, std::size_t blocks, float* out, std::size_t elements, const Body& body) {
  for (std::size_t b = 0; b < blocks; ++b, data += bytes, out += elements) body(data, out);
}

/// The six-bit scales and minima of Q4_K and Q5_K, eight each in twelve bytes: the first four of both lie in the low bits of bytes 0–3 and
/// 4–7, whose upper two bits belong to the last four, as do the nibbles of bytes 8–11.
struct Scales {
  std::uint8_t scale[8], minimum[8];
  explicit Scales(const std::uint8_t* packed) {
    for (int i = 0; i < 4; ++i) {
      scale[i] = packed[i] & 0x3f;
      minimum[i] = packed[i + 4] & 0x3f;
      scale[i + 4] = static_cast<std::uint8_t>((packed[i + 8] & 0xf) | (packed[i] >> 2 & 0x30));
      minimum[i + 4] = static_cast<std::uint8_t>(packed[i + 8] >> 4 | (packed[i + 4] >> 2 & 0x30));
    }
  }
};

// Levels of IQ4_NL and IQ4_XS (kvalues_iq4nl), and twice the values of E2M1 (kvalues_mxfp4), so that both are whole.
constexpr float kUneven[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr float kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace

void f32(const std::uint8_t* data, std::size_t blocks, float* out) {
  if (blocks > 0) std::memcpy(out, data, blocks * sizeof(float));
}

void f16(const std::uint8_t* data, std::size_t blocks, float* out) {
  for (std::size_t i = 0; i < blocks; ++i) out[i] = half(data + 2 * i);
}

void bf16(const std::uint8_t* data, std::size_t blocks, float* out) {
  for (std::size_t i = 0; i < blocks; ++i) out[i] = std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(data + 2 * i)} << 16);
}

void f64(const std::uint8_t* data, std::size_t blocks, float* out) {
  for (std::size_t i = 0; i < blocks; ++i) out[i] = static_cast<float>(load<double>(data + 8 * i));
}

void q4_0(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<18>(data, blocks, out, 32, [](const std::uint8_t* block, float* y) {
    const float d = half(block);
    for (int i = 0; i < 16; ++i) {
      y[i] = d * static_cast<float>((block[2 + i] & 0xf) - 8);
      y[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
    }
  });
}

void q4_1(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<20>(data, blocks, out, 32, [](const std::uint8_t* block, float* y) {
    const float d = half(block), m = half(block + 2);
    for (int i = 0; i < 16; ++i) {
      y[i] = d * static_cast<float>(block[4 + i] & 0xf) + m;
      y[i + 16] = d * static_cast<float>(block[4 + i] >> 4) + m;
    }
  });
}

void q5_0(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<22>(data, blocks, out, 32, [](const std::uint8_t* block, float* y) {
    const float d = half(block);
    const auto high = load<std::uint32_t>(block + 2);
    for (int i = 0; i < 16; ++i) {
      y[i] = d * static_cast<float>(static_cast<int>((block[6 + i] & 0xf) | (high >> i & 1) << 4) - 16);
      y[i + 16] = d * static_cast<float>(static_cast<int>(block[6 + i] >> 4 | (high >> (i + 16) & 1) << 4) - 16);
    }
  });
}

void q5_1(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<24>(data, blocks, out, 32, [](const std::uint8_t* block, float* y) {
    const float d = half(block), m = half(block + 2);
    const auto high = load<std::uint32_t>(block + 4);
    for (int i = 0; i < 16; ++i) {
      y[i] = d * static_cast<float>((block[8 + i] & 0xf) | (high >> i & 1) << 4) + m;
      y[i + 16] = d * static_cast<float>(block[8 + i] >> 4 | (high >> (i + 16) & 1) << 4) + m;
    }
  });
}

void q8_0(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<34>(data, blocks, out, 32, [](const std::uint8_t* block, float* y) {
    const float d = half(block);
    for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
  });
}

// 16 bytes of scales (low nibble) and minima (high), 64 of codes, d, d of the minima.
void q2_k(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<84>(data, blocks, out, kSuper, [](const std::uint8_t* block, float* y) {
    const float d = half(block + 80), d_min = half(block + 82);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(block[group] & 0xf), minimum = d_min * static_cast<float>(block[group] >> 4);
      const auto* codes = block + 16 + group / 8 * 32 + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      for (int i = 0; i < 16; ++i) y[16 * group + i] = scale * static_cast<float>(codes[i] >> shift & 3) - minimum;
    }
  });
}

// 32 bytes of third bits (a set one means that nothing is taken off), 64 of codes, 12 of scales, d.
void q3_k(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<110>(data, blocks, out, kSuper, [](const std::uint8_t* block, float* y) {
    const float d = half(block + 108);
    const auto* packed = block + 96;
    for (int group = 0; group < 16; ++group) {
      const int low = packed[group % 8] >> group / 8 * 4 & 0xf, high = packed[8 + group % 4] >> group / 4 * 2 & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      const auto* codes = block + 32 + group / 8 * 32 + group % 2 * 16;
      const auto* thirds = block + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      for (int i = 0; i < 16; ++i) {
        const int code = (codes[i] >> shift & 3) - (thirds[i] >> group / 2 & 1 ? 0 : 4);
        y[16 * group + i] = scale * static_cast<float>(code);
      }
    }
  });
}

// d, d of the minima, 12 bytes of scales and minima, 128 of codes.
void q4_k(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<144>(data, blocks, out, kSuper, [](const std::uint8_t* block, float* y) {
    const float d = half(block), d_min = half(block + 2);
    const Scales scales(block + 4);
    for (int group = 0; group < 8; ++group) {
      const float scale = d * static_cast<float>(scales.scale[group]), minimum = d_min * static_cast<float>(scales.minimum[group]);
      const auto* codes = block + 16 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) y[32 * group + i] = scale * static_cast<float>(codes[i] >> shift & 0xf) - minimum;
    }
  });
}

// As Q4_K, with 32 bytes of fifth bits before the codes.
void q5_k(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<176>(data, blocks, out, kSuper, [](const std::uint8_t* block, float* y) {
    const float d = half(block), d_min = half(block + 2);
    const Scales scales(block + 4);
    const auto* fifths = block + 16;
    for (int group = 0; group < 8; ++group) {
      const float scale = d * static_cast<float>(scales.scale[group]), minimum = d_min * static_cast<float>(scales.minimum[group]);
      const auto* codes = block + 48 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) {
        const int code = (codes[i] >> shift & 0xf) | (fifths[i] >> group & 1) << 4;
        y[32 * group + i] = scale * static_cast<float>(code) - minimum;
      }
    }
  });
}

// 128 bytes of low nibbles, 64 of upper pairs of bits, 16 signed scales, d.
void q6_k(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<210>(data, blocks, out, kSuper, [](const std::uint8_t* block, float* y) {
    const float d = half(block + 208);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(static_cast<std::int8_t>(block[192 + group]));
      const int in_half = group % 8, first = in_half * 16 % 32;
      const auto* low = block + group / 8 * 64 + in_half % 4 * 16;
      const auto* high = block + 128 + group / 8 * 32 + first;
      const int low_shift = in_half / 4 * 4, high_shift = in_half / 2 * 2;
      for (int i = 0; i < 16; ++i) {
        const int code = ((low[i] >> low_shift & 0xf) | (high[i] >> high_shift & 3) << 4) - 32;
        y[16 * group + i] = scale * static_cast<float>(code);
      }
    }
  });
}

void iq4_nl(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<18>(data, blocks, out, 32, [](const std::uint8_t* block, float* y) {
    const float d = half(block);
    for (int i = 0; i < 16; ++i) {
      y[i] = d * kUneven[block[2 + i] & 0xf];
      y[i + 16] = d * kUneven[block[2 + i] >> 4];
    }
  });
}

// d, 16 bits with the upper pairs of the eight scales, 4 bytes with their low nibbles, 128 bytes of codes.
void iq4_xs(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<136>(data, blocks, out, kSuper, [](const std::uint8_t* block, float* y) {
    const float d = half(block);
    const auto upper = load<std::uint16_t>(block + 2);
    for (int group = 0; group < 8; ++group) {
      const int low = block[4 + group / 2] >> group % 2 * 4 & 0xf, high = upper >> 2 * group & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      const auto* codes = block + 8 + 16 * group;
      for (int i = 0; i < 16; ++i) {
        y[32 * group + i] = scale * kUneven[codes[i] & 0xf];
        y[32 * group + i + 16] = scale * kUneven[codes[i] >> 4];
      }
    }
  });
}

void mxfp4(const std::uint8_t* data, std::size_t blocks, float* out) {
  each<17>(data, blocks, out, 32, [](const std::uint8_t* block, float* y) {
    // Half of 2^(e − 127), since the levels are doubled; the two smallest are subnormal.
    const std::uint32_t e = block[0];
    const float d = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    for (int i = 0; i < 16; ++i) {
      y[i] = d * kTwiceE2m1[block[1 + i] & 0xf];
      y[i + 16] = d * kTwiceE2m1[block[1 + i] >> 4];
    }
  });
}

}  // namespace lquant::checkpoint::gguf::blocks
