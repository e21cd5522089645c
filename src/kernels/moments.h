#pragma once

#include <mlx/array.h>

// Second moments of a layer's inputs, the matrices that GPTQ and its kin are made of.
namespace lquant::kernels {

namespace mx = mlx::core;

/// Σ xᵀx over all rows: f32 [K, K] of x [..., K] (f32, bf16 or f16), summed in f32 and exactly symmetric. Lazy, no gradient.
mx::array gram(const mx::array& x);

/// Σ (reference − x)ᵀx over all rows: f32 [K, K] of two arrays of one shape and dtype; the difference is rounded to that dtype.
mx::array shift_moment(const mx::array& reference, const mx::array& x);

/// Σ xᵀy over all rows: f32 [K, L] of x [..., K] and y [..., L] with equal leading shapes and dtypes; else std::invalid_argument.
mx::array cross_moment(const mx::array& x, const mx::array& y);

}  // namespace lquant::kernels
