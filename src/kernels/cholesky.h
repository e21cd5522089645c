#pragma once

#include <mlx/array.h>

#include <optional>

// Factorisations of the symmetric matrices that methods meet. They compute at once, on the device that holds the data where that device
// can: LAPACK from OpenBLAS on a CPU, MLX's own on CUDA.
namespace lquant::kernels {

namespace mx = mlx::core;

/// The upper triangular R, f32 [K, K], zero below its diagonal, with R · Rᵀ = a, for symmetric a f32 [K, K] (only one triangle is
/// read). nullopt when a is not positive definite in f32. Throws std::invalid_argument for other shapes and dtypes.
std::optional<mx::array> upper_factor(const mx::array& a);

/// x f32 [N, K] with x · a = b, for a as above and b f32 [N, K]. nullopt as above.
std::optional<mx::array> solve_positive(const mx::array& a, const mx::array& b);

}  // namespace lquant::kernels
