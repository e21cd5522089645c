#pragma once

#include <mlx/array.h>

// The CPU side of moments.h.
namespace lquant::kernels::cpu {

namespace mx = mlx::core;

mx::array shift_moment(const mx::array& reference, const mx::array& x);
mx::array gram(const mx::array& x);
mx::array cross_moment(const mx::array& x, const mx::array& y);

}  // namespace lquant::kernels::cpu
