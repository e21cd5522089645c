#pragma once

#include <mlx/array.h>

// What gated_delta.cpp makes of each chunk of tokens by itself. Internal to this folder.
namespace lquant::kernels {

namespace mx = mlx::core;

struct ChunkDecays {
  mx::array between;     ///< […, C, C, D]: from token j to token i the product of the decays of j + 1 … i; 0 for j > i
  mx::array from_front;  ///< […, C, D]: that of the chunk's first token to i
};

/// logs f32 […, C, D]: logarithms of decays, of a head (D = 1) or of each key channel. Sums over the tokens in between: differences of sums from the
/// chunk's beginning would lose what small decays say behind large ones. Differentiable.
ChunkDecays chunk_decays(const mx::array& logs);

/// (I + a)⁻¹ of strictly lower triangular a f32 […, C, C]. Differentiable.
mx::array unit_inverse(const mx::array& a);

/// f32 [C, C]: 1 for j < i (below the diagonal), else 0; with the diagonal if asked for.
mx::array lower_mask(int length, bool diagonal);

}  // namespace lquant::kernels
