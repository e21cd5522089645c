#pragma once

#include <mlx/array.h>

#include <optional>

namespace lquant::kernels {

namespace mx = mlx::core;

/// Rotary position embedding (arXiv 2104.09864) on x [B, T, H, D], f32 or bf16: the first 2·F features are rotated by angle
/// (offset + t)·inv_freq[f], inv_freq f32 [F]; cos and sin are multiplied by `magnitude` (YaRN arXiv 2309.00071, LongRoPE). Halves are
/// paired (f, f + F) or, when `interleaved`, (2f, 2f + 1). `positions` int32 [B, T] replaces offset + t. The angle is one f32
/// product, as in MLX. Differentiable for x. Throws std::invalid_argument when shapes or dtypes disagree or 2·F > D.
mx::array rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude = 1.0f, bool interleaved = false,
               const std::optional<mx::array>& positions = std::nullopt);

}  // namespace lquant::kernels
