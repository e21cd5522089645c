#pragma once

#include <cstddef>
#include <cstdint>

// From packed blocks to floats, one function a type. Each computes in f32, operation by operation what ggml's dequantize_row_… and the
// `gguf` package's dequantize do, so that all three agree in every bit. `data` need not be aligned.
namespace lquant::checkpoint::gguf::blocks {

void f32(const std::uint8_t* data, std::size_t blocks, float* out);
void f16(const std::uint8_t* data, std::size_t blocks, float* out);
void bf16(const std::uint8_t* data, std::size_t blocks, float* out);
/// Rounded to nearest.
void f64(const std::uint8_t* data, std::size_t blocks, float* out);

/// 32 values: an f16 scale d (and for _1 an f16 minimum m), codes q of 4, 5 or 8 bits. d (q − 2^(bits−1)), or d q + m.
void q4_0(const std::uint8_t* data, std::size_t blocks, float* out);
void q4_1(const std::uint8_t* data, std::size_t blocks, float* out);
void q5_0(const std::uint8_t* data, std::size_t blocks, float* out);
void q5_1(const std::uint8_t* data, std::size_t blocks, float* out);
void q8_0(const std::uint8_t* data, std::size_t blocks, float* out);

/// 256 values: f16 scales of the scales, and 6-bit (Q2_K: 4-bit, Q6_K: 8-bit) scales of each 16 or 32 values.
void q2_k(const std::uint8_t* data, std::size_t blocks, float* out);
void q3_k(const std::uint8_t* data, std::size_t blocks, float* out);
void q4_k(const std::uint8_t* data, std::size_t blocks, float* out);
void q5_k(const std::uint8_t* data, std::size_t blocks, float* out);
void q6_k(const std::uint8_t* data, std::size_t blocks, float* out);

/// 4-bit codes that name one of 16 unevenly spaced levels.
void iq4_nl(const std::uint8_t* data, std::size_t blocks, float* out);
void iq4_xs(const std::uint8_t* data, std::size_t blocks, float* out);
/// E2M1 values with an E8M0 scale for 32 of them (OCP microscaling formats).
void mxfp4(const std::uint8_t* data, std::size_t blocks, float* out);

}  // namespace lquant::checkpoint::gguf::blocks
