#pragma once

#include <mlx/array.h>

#include <optional>

// The ways in which causal_conv.h can be computed, for tests and measurements; taps are f32.
namespace lquant::kernels {

namespace mx = mlx::core;

/// On MLX's operations, for any device.
mx::array causal_conv_mlx(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments);

/// As CUDA kernels for y and x's gradient. Only where cuda_kernels(), no empty dimension.
mx::array causal_conv_cuda(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments);

/// In one pass over x, and one over the cotangent for x's gradient (x86-64 Linux builds only). f32 or bf16, no empty dimension.
mx::array causal_conv_cpu(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments);

}  // namespace lquant::kernels
