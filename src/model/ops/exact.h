#pragma once

#include <mlx/array.h>

// Numbers that blocks carry to each other as columns of the state, which has one dtype, and which must arrive as they are: places of tokens, weights
// made in f32. Each is split into several of 8 bits, which every dtype holds, and is their sum.
namespace lquant::model {

namespace mx = mlx::core;

/// Columns that a number takes: any of f32; a whole one below 2^16.
inline constexpr int kNumberColumns = 3, kSmallColumns = 2;

/// x f32 [..., n] → [..., columns · n] in `dtype`; the gradient is that of a cast.
mx::array in_columns(const mx::array& x, int columns, mx::Dtype dtype);

/// What in_columns was given, f32.
mx::array out_of_columns(const mx::array& x, int columns);

}  // namespace lquant::model
