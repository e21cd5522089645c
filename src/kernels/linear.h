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
/// dtypes: f32, bf16 or f16, all alike; products accumulate in f32. Gradients flow to x, every W_i (dtype of dW: f32; on CUDA that of W), b_i,
/// residual. (In f16 MLX's ops round a dW to f16 first: kernels/scaled_vjp.h keeps it in range.) Throws std::invalid_argument when shapes disagree.
struct LinearWeight {
  mx::array weight;
  std::optional<mx::array> bias = std::nullopt;
};
std::vector<mx::array> linears(const mx::array& x, const std::vector<LinearWeight>& weights);
mx::array linear(const mx::array& x, const LinearWeight& weight, const std::optional<mx::array>& residual = std::nullopt);

/// Products over rows sorted by expert: rows offsets[e] … offsets[e+1] of x [R, K] meet W[e] of W [E, N, K] (+ b [E, N]).
/// offsets [E+1] int32, ascending from 0 to R. Result [R, N]. Gradients flow to x, W and b (dtype of dW: f32; that of W where grouped_product.h
/// serves).
mx::array grouped_linear(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets);

/// The gradient of a grouped_linear's weight before it is evaluated: of expert e Σ dyᵀx over its rows. What is wanted of it can then be had without
/// an f32 array of the weight's size.
struct GroupedGradient {
  mx::array dy, x;    ///< [R, N], [R, K]
  mx::array offsets;  ///< as above
};
/// nullopt for other arrays, and where it was not made by a CPU's kernels.
std::optional<GroupedGradient> grouped_gradient(const mx::array& gradient);

/// Sums of the squares of such a gradient [E, N, K], f32. No gradient.
struct SquareSums {
  mx::array columns;  ///< [E, K]: over all rows
  mx::array groups;   ///< [E, N, K / group]: over the columns of a group
  mx::array rows;     ///< [E, ⌈N / step⌉, K]: every step-th row's own squares
};
/// Throws std::invalid_argument when K is not a multiple of the group.
SquareSums square_sums(const GroupedGradient& gradient, int group, int step);

}  // namespace lquant::kernels
