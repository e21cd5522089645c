#pragma once

#include <mlx/array.h>

// What a linear recurrence with corrections hands from chunk to chunk of its tokens (gated_delta.cpp): the only part of it that has an order.
// Internal to this folder.
namespace lquant::kernels {

namespace mx = mlx::core;

struct Carried {
  mx::array corrected;  ///< [G, N, C, V]: c_n = written_n − read_n · S_n
  mx::array states;     ///< [G, N, K, V]: S_n, in front of each chunk; S_0 = memory
  mx::array last;       ///< [G, K, V]: S_N, of S_{n+1} = kept_n ⊙ S_n + told_nᵀ · c_n
};

/// All f32. written [G, N, C, V], read and told [G, N, C, K], kept [G, N, K or 1, 1], memory [G, K, V]. Gradients flow to all of them.
Carried carry_chunks(const mx::array& written, const mx::array& read, const mx::array& told, const mx::array& kept, const mx::array& memory);

}  // namespace lquant::kernels
