#pragma once

#include <mlx/array.h>

#include <optional>
#include <utility>

namespace lquant::kernels {

namespace mx = mlx::core;

/// RWKV-7's recurrence (arXiv 2503.14456), of each head by itself: S_t = S_{t−1} (diag(w_t) + a_t b_tᵀ) + v_t k_tᵀ, y_t = S_t r_t.
struct Wkv {
  mx::array r, w, k, v, a, b;                        ///< [B, T, H, D] f32; w above 0.5 and at most 1
  std::optional<mx::array> segments = std::nullopt;  ///< int32 [B, T]: where the number differs from the one before, S starts from 0
  std::optional<mx::array> state = std::nullopt;     ///< [B, H, D, D] f32: S in front of the first token; else 0. Not with segments
};

/// y [B, T, H, D] and S behind the last token, both f32. In chunks of 16 tokens, in which products of w and their inverses stay above 2⁻¹⁶ and below
/// 2¹⁶: within a chunk the products of S and a solve a triangular system (WY form, arXiv 2406.06484). Gradients flow to all but segments. Throws
/// std::invalid_argument when shapes or dtypes disagree.
std::pair<mx::array, mx::array> wkv(const Wkv& in);

}  // namespace lquant::kernels
