#pragma once

#include <mlx/array.h>

#include <optional>

namespace lquant::kernels {

namespace mx = mlx::core;

/// Layer norm (arXiv 1607.06450) over the last axis: (x − mean) / sqrt(variance + eps) · (weight + weight_offset) + bias. x [..., K],
/// weight and bias [K], each optional, all f32, bf16 or f16; result in x's dtype. Without weight there is no scaling, whatever the offset
/// (1 is Nemotron's convention, whose weights are stored as w − 1). Gradients flow to every input, those of weight and bias in their
/// dtypes, summed in f32. Roundings are those of mx.fast.layer_norm: the normed row to x's dtype, its product with the weight a second
/// time, the sum with the bias a third; weight + weight_offset is rounded to the weight's dtype. Everything between is f32, the variance
/// from the differences to the mean. Throws std::invalid_argument when shapes or dtypes disagree.
mx::array layer_norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias, float eps,
                     float weight_offset = 0);

}  // namespace lquant::kernels
