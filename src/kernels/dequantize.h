#pragma once

#include <mlx/array.h>

#include <vector>

// Between MLX's packed affine codes and numbers. bits is one of 2, 3, 4, 5, 6, 8; group_size one of 32, 64, 128. All throw
// std::invalid_argument when shapes or dtypes disagree.
namespace lquant::kernels {

namespace mx = mlx::core;

/// W = scale·q + bias from MLX's packed affine codes, once, for a product with many rows after it.
/// codes u32 [..., N, K·bits/32]; scales, biases [..., N, K/group], both f32, bf16 or f16; result [..., N, K] of `dtype` (one of
/// these too). The product and the sum are each rounded to the dtype of the scales, then the result once more to `dtype`: bit for
/// bit mx.dequantize on the same device (on a GPU it is that op), but for the sign of a NaN. Gradients flow to scales (Σ dW·q over the group) and
/// biases (Σ dW), summed in f32 and given in the scales' dtype; dW may be f32 whatever `dtype` is. Codes have no gradient.
mx::array dequantize_affine(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size, mx::Dtype dtype);

/// {d_scales, d_biases} of dequantize_affine for a gradient dW [..., N, K]; each of `dtype`, [..., N, K/group].
std::vector<mx::array> dequantize_affine_gradient(const mx::array& codes, const mx::array& gradient, int bits, int group_size, mx::Dtype dtype);

/// codes u32 [..., K·bits/32] → u8 [..., K]. K is a multiple of 32.
mx::array unpack_codes(const mx::array& codes, int bits);

/// u8 [..., K], each below 2^bits, → u32 [..., K·bits/32], the inverse of unpack_codes. K must be a multiple of 32.
mx::array pack_codes(const mx::array& codes, int bits);

}  // namespace lquant::kernels
