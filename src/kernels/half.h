#pragma once

#include <mlx/array.h>

namespace lquant::kernels {

namespace mx = mlx::core;

/// f32, bf16 or f16: what every op of this folder takes.
bool is_float(mx::Dtype dtype);

/// x in f32. Its gradient stays f32, where that of astype would be rounded to x's dtype.
mx::array widened(const mx::array& x);

/// The largest power of two that is no larger than x; 1 for an x that is not a positive finite number.
float power_of_two_below(double x);

}  // namespace lquant::kernels
