#pragma once

#include <mlx/array.h>

namespace lquant::kernels {

namespace mx = mlx::core;

/// Rows of a table: ids int32 [...] → [..., H] of table [V, H] (f32 or bf16), times `multiplier`, which is rounded to the table's dtype
/// first, as mlx_lm's product is. Gradient to the table is f32 [V, H]; repeated ids add up. Throws std::out_of_range for an id outside the
/// table: at evaluation on CPU, at the call (which waits for the ids) elsewhere; std::invalid_argument when shapes or dtypes are wrong.
mx::array embedding(const mx::array& ids, const mx::array& table, float multiplier = 1.0f);

/// The same on a packed affine table, codes u32 [V, H·bits/32], scales and biases [V, H/group_size]: only the rows asked for are
/// unpacked, by dequantize_affine, whose values, roundings and errors these are. Gradients flow to scales and biases, f32 and of their shape,
/// never through a dense table.
mx::array embedding_affine(const mx::array& ids, const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size,
                           mx::Dtype dtype, float multiplier = 1.0f);

}  // namespace lquant::kernels
