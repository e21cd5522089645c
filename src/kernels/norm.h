#pragma once

#include <mlx/array.h>

#include <optional>
#include <utility>

// Root-mean-square norms (arXiv 1910.07467) in the three places where a decoder has them. Tensors [..., K], weight [K], all f32, bf16
// or f16, results in x's dtype; gradients flow to every float input, that of the weight in the weight's dtype, summed in f32.
// Roundings are those of mx.fast.rms_norm, so that training sees what inference computes: x / rms is rounded to x's dtype,
// its product with the weight a second time; weight + weight_offset is rounded to the weight's dtype, as mlx_lm's `1 + weight` is.
// Everything between is f32. All throw std::invalid_argument when shapes or dtypes disagree.
namespace lquant::kernels {

namespace mx = mlx::core;

/// x / sqrt(mean(x²) + eps) · (weight + weight_offset), over the last axis (weight_offset 1 is Gemma's convention).
/// Without weight: no scaling.
mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps, float weight_offset = 0);

/// {x, rms_norm(x, …)}: the two readers of the residual stream made one op, so that their gradients are summed inside it.
std::pair<mx::array, mx::array> residual_norm(const mx::array& x, const mx::array& weight, float eps, float weight_offset = 0);

/// residual + rms_norm(y, …) (norm after a sub-layer, Gemma 2 and 3); the gradient to the residual is the cotangent itself.
/// residual and y have one shape and one dtype.
mx::array add_norm(const mx::array& residual, const mx::array& y, const mx::array& weight, float eps, float weight_offset = 0);

}  // namespace lquant::kernels
