#pragma once

#include <mlx/array.h>

#include <optional>

// rms_norm() and rope() as CUDA kernels, for norm.cpp and rope.cpp. MLX's norms of short rows and its rotations take two to three times as long as
// reading and writing what they read and write, and its gradient of a norm makes the weight's too. Only where cuda_kernels(), arrays not empty.
namespace lquant::kernels::cuda {

namespace mx = mlx::core;

/// As in norm.h; the weight's gradient is made by MLX when it is asked for.
mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps, float weight_offset);

/// As in rope.h.
mx::array rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude, bool interleaved,
               const std::optional<mx::array>& positions);

}  // namespace lquant::kernels::cuda
