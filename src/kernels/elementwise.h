#pragma once

#include <mlx/array.h>

#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/gated.h"
#include "kernels/layer_norm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

// Norms, rotary positions, gated activations, embeddings: the ops between the matrix products. All take f32, bf16 or
// f16 (computing in f32 inside), any number of leading dimensions, and are differentiable for their float inputs. On CPU results
// do not depend on the number of threads.
namespace lquant::kernels {

namespace mx = mlx::core;

/// a + b, equal shapes and dtypes, on all cores. The gradient of both is the cotangent itself. Call it as kernels::add: the bare
/// name also finds MLX's.
mx::array add(const mx::array& a, const mx::array& b);

/// sum + x²: sum f32, x f32, bf16 or f16 of the same shape. f32, no gradient.
mx::array add_squares(const mx::array& sum, const mx::array& x);

/// Σ over leading axes of x²: the diagonal of the input's second moment, f32 [K] of x [..., K]. No gradient.
mx::array second_moment(const mx::array& x);

}  // namespace lquant::kernels
