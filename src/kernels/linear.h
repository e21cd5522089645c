#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "kernels/dequantize.h"

namespace lquant::kernels {

namespace mx = mlx::core;

/// y_i = x · W_iᵀ (+ b_i) (+ residual_i), several weights reading one input (q/k/v, gate/up): the gradient to x is then
/// one accumulated product, not a sum of tensors.
/// x [..., K]; W_i [N_i, K]; b_i [N_i]; residual [..., N] only with a single weight (fused into the product's accumulator).
/// dtypes: f32, bf16 or f16, all alike; products accumulate in f32. Gradients flow to x, every W_i (dtype of dW: f32), b_i, residual.
/// (In f16 MLX's ops round a dW to f16 first: kernels/scaled_vjp.h keeps it in range.) Throws std::invalid_argument when shapes disagree.
struct LinearWeight {
  mx::array weight;
  std::optional<mx::array> bias = std::nullopt;
};
std::vector<mx::array> linears(const mx::array& x, const std::vector<LinearWeight>& weights);
mx::array linear(const mx::array& x, const LinearWeight& weight, const std::optional<mx::array>& residual = std::nullopt);

/// Products over rows sorted by expert: rows offsets[e] … offsets[e+1] of x [R, K] meet W[e] of W [E, N, K] (+ b [E, N]).
/// offsets [E+1] int32, ascending from 0 to R. Result [R, N]. Gradients flow to x, W and b.
mx::array grouped_linear(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets);

}  // namespace lquant::kernels
