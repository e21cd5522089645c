#pragma once

#include <mlx/array.h>

namespace lquant::kernels {

namespace mx = mlx::core;

/// W = scale·q + bias from MLX's packed affine codes, once, for a product with many rows after it.
/// codes u32 [..., N, K·bits/32]; scales, biases [..., N, K/group]; result [..., N, K] of `dtype`, computed as MLX's
/// dequantize does when scales have `dtype`. Gradients flow to scales (Σ dW·q over the group) and biases (Σ dW), f32 inside.
mx::array dequantize_affine(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size, mx::Dtype dtype);

}  // namespace lquant::kernels
