#pragma once

#include <mlx/array.h>

#include <optional>

// The CPU side of cholesky.h: OpenBLAS.
namespace lquant::kernels::cpu {

namespace mx = mlx::core;

#ifdef LQUANT_ONEDNN
inline constexpr bool lapack = true;
#else
inline constexpr bool lapack = false;
#endif

std::optional<mx::array> upper_factor(const mx::array& a);
mx::array solve_factored(const mx::array& upper, const mx::array& b);

}  // namespace lquant::kernels::cpu
