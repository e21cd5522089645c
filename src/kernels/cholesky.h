#pragma once

#include <mlx/array.h>

#include <optional>

// Factorisations of the symmetric matrices that methods meet, made at once: by LAPACK from OpenBLAS on a CPU, by MLX's own (cuSOLVER) on CUDA. There
// a solution is two products with the inverse of the triangle, which is made when first needed (cholesky.cpp says how); lazy.
namespace lquant::kernels {

namespace mx = mlx::core;

/// The upper triangular R, f32 [K, K], zero below its diagonal, with R · Rᵀ = a, for symmetric a f32 [K, K] (only one triangle is
/// read). nullopt when a is not positive definite in f32. Throws std::invalid_argument for other shapes and dtypes.
std::optional<mx::array> upper_factor(const mx::array& a);

/// What solves x · a = b for a = R · Rᵀ, any number of times.
class PositiveSolver {
 public:
  /// upper: R as upper_factor makes it.
  explicit PositiveSolver(mx::array upper);

  const mx::array& upper() const { return upper_; }
  /// x f32 [N, K] for b f32 [N, K]. Throws std::invalid_argument for other shapes and dtypes.
  mx::array solve(const mx::array& b) const;

 private:
  mx::array upper_;
  mutable std::optional<mx::array> inverse_;  ///< of R; on CUDA, when first needed
};

}  // namespace lquant::kernels
