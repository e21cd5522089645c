#pragma once

#include <mlx/array.h>

#include <functional>
#include <vector>

// Backward passes that f16 can hold. It knows magnitudes from 6e-8 to 65504, and the gradients of hidden states often lie below: what
// would be rounded to 0 is kept when the pass starts from a multiple of its cotangent, and what comes out is divided by that in f32 (Micikevicius
// et al., arXiv 1710.03740). The factors are powers of two, so nothing else changes. Where a product leaves f16's range the pass is made again
// from a smaller multiple; no factor is remembered from one call to the next, so results do not depend on what was computed before.
namespace lquant::kernels {

namespace mx = mlx::core;

struct Pullback {
  std::vector<mx::array> values;     ///< what the function gave
  std::vector<mx::array> gradients;  ///< one for each input
  bool in_range = true;              ///< false where f16 holds the values, but no multiple of the gradients
};

using ArrayFunction = std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

/// The gradients of `loss`, a function of one f32 scalar computed in `dtype`, for all of its inputs: mx::vjp with the cotangent 1. The loss is
/// a sum of nats over tokens, or of like size a token. In f16 the gradients are f32 and all is evaluated; those that no multiple could bring into
/// range are not finite (Pullback::in_range). In other dtypes they are MLX's own, lazy.
Pullback loss_gradients(const ArrayFunction& loss, const std::vector<mx::array>& inputs, mx::Dtype dtype);

/// The same of a function of one array, from the gradient `cotangent` of what comes behind it (of its shape, f32 or of its dtype). In f16 the
/// multiple follows from the cotangent's largest element.
Pullback gradients_through(const ArrayFunction& function, const std::vector<mx::array>& inputs, const mx::array& cotangent, mx::Dtype dtype);

}  // namespace lquant::kernels
