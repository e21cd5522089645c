#pragma once

#include <mlx/array.h>

#include <optional>

// Products of rows sorted by expert as CUDA kernels, for linear.cpp. MLX's own (gather_mm, segmented_mm) load one number at a time.
namespace lquant::kernels {

namespace mx = mlx::core;

/// Whether the default device has them for a weight [E, N, K]: 16 bits, N and K multiples of 8.
bool fused_grouped_product(const mx::array& weight);

/// As grouped_linear (linear.h), with x, weight and bias of one dtype, which the weight's gradient has too.
mx::array grouped_product(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets);

}  // namespace lquant::kernels
