#pragma once

#include <mlx/array.h>

#include <optional>
#include <utility>

// Norms, rotary positions, gated activations, embeddings: the ops between the matrix products. All take f32 or bf16
// (computing in f32 inside), any number of leading dimensions, and are differentiable for their float inputs.
namespace lquant::kernels {

namespace mx = mlx::core;

/// x / sqrt(mean(x²) + eps) · (weight + weight_offset), over the last axis (weight_offset 1 is Gemma's convention).
/// Without weight: no scaling. Rounds as mx.fast.rms_norm does: all in f32, one rounding at the end.
mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps, float weight_offset = 0);

/// {x, rms_norm(x, …)}: the two readers of the residual stream made one op, so that their gradients are summed inside it.
std::pair<mx::array, mx::array> residual_norm(const mx::array& x, const mx::array& weight, float eps, float weight_offset = 0);

/// residual + rms_norm(y, …) (norm after a sub-layer, Gemma 2 and 3); the gradient to the residual is the cotangent itself.
mx::array add_norm(const mx::array& residual, const mx::array& y, const mx::array& weight, float eps, float weight_offset = 0);

/// a + b, equal shapes, on all cores.
mx::array add(const mx::array& a, const mx::array& b);

/// Rotary position embedding (arXiv 2104.09864) on x [B, T, H, D]: the first 2·F features are rotated by angle
/// (offset + t)·inv_freq[f], inv_freq f32 [F]; cos and sin are multiplied by `magnitude` (YaRN, LongRoPE). Halves are
/// paired (f, f + F) or, when `interleaved`, (2f, 2f + 1). `positions` int32 [B, T] replaces offset + t.
mx::array rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude = 1.0f, bool interleaved = false,
               const std::optional<mx::array>& positions = std::nullopt);

enum class Activation { silu, gelu, gelu_tanh, relu, relu2 };

/// activation(gate) · up, equal shapes.
mx::array gated(const mx::array& gate, const mx::array& up, Activation activation);
/// The same on one tensor [..., 2·I] whose first half is the gate (Phi-3's fused gate_up).
mx::array gated_fused(const mx::array& gate_up, Activation activation);

/// Rows of a table: ids int32 [...] → [..., H] of table [V, H], times `multiplier`. Gradient to the table is f32 [V, H].
/// Throws std::out_of_range for an id outside the table.
mx::array embedding(const mx::array& ids, const mx::array& table, float multiplier = 1.0f);
/// The same on a packed affine table (see dequantize_affine); gradients flow to scales and biases, never through a dense table.
mx::array embedding_affine(const mx::array& ids, const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size,
                           mx::Dtype dtype, float multiplier = 1.0f);

/// Σ over leading axes of x²: the diagonal of the input's second moment, f32 [K]. No gradient.
mx::array second_moment(const mx::array& x);

}  // namespace lquant::kernels
