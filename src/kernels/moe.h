#pragma once

#include <mlx/array.h>

namespace lquant::kernels {

namespace mx = mlx::core;

/// Where each token goes. `order` int32 [T·k]: row r of the sorted input is token order[r] / k (and choice order[r] % k);
/// `offsets` int32 [E+1]: rows offsets[e] … offsets[e+1] belong to expert e. Ties keep token order. No gradient.
struct Routing {
  mx::array order;
  mx::array offsets;
};
/// experts int32 [T, k]: the chosen experts of each token. On CPU an expert outside 0 … num_experts − 1 throws std::out_of_range at
/// evaluation. Here and below std::invalid_argument is thrown when shapes or dtypes disagree.
Routing sort_by_expert(const mx::array& experts, int num_experts);

/// x [T, H] → [T·k, H], row r = x[order[r] / k]. Differentiable for x.
mx::array gather_rows(const mx::array& x, const Routing& routing, int k);

/// y [T·k, H] in sorted order, weights [T, k] → [T, H]: Σ_j weights[t, j] · y[row of (t, j)], summed in f32. Differentiable for y and weights.
mx::array combine_rows(const mx::array& y, const mx::array& weights, const Routing& routing, int k);

}  // namespace lquant::kernels
