#pragma once

#include <mlx/array.h>

// Products of f32 matrices in f32 precision on a GPU. MLX lets tensor cores cut the factors of f32 products to 11 bits, 2⁻¹¹ of every term.
namespace lquant::kernels {

namespace mx = mlx::core;

/// x = high + low exactly, high of 11 bits as tensor cores take it, low at most 2⁻¹¹ of it.
struct SplitMatrix {
  mx::array high, low;
};
SplitMatrix split(const mx::array& x);

/// a · b, [..., N, K] by [..., K, M], of three products of parts; what is left out, low · low, is 2⁻²² of every term.
mx::array precise_product(const SplitMatrix& a, const SplitMatrix& b);
mx::array precise_product(const mx::array& a, const mx::array& b);

}  // namespace lquant::kernels
