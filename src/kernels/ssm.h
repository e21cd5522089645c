#pragma once

#include <mlx/array.h>

#include <optional>
#include <utility>

// Recurrences of state-space models over the tokens of a text.
namespace lquant::kernels {

namespace mx = mlx::core;

/// Mamba-2's recurrence (state-space duality, arXiv 2405.21060), of each head h by itself, which reads b and c of group h / (H / G):
/// S_t = exp(a Δ_t) S_{t−1} + Δ_t x_t b_tᵀ, y_t = S_t c_t.
struct StateSpace {
  mx::array x;                                       ///< [B, T, H, P], f32, bf16 or f16
  mx::array dt;                                      ///< Δ, [B, T, H] f32, at least 0
  mx::array a;                                       ///< [H] f32, at most 0
  mx::array b, c;                                    ///< [B, T, G, N], x's dtype; G divides H
  std::optional<mx::array> segments = std::nullopt;  ///< int32 [B, T]: where the number differs from the one before, S starts from 0
  std::optional<mx::array> state = std::nullopt;     ///< [B, H, P, N] f32: S in front of the first token; else 0. Not with segments
};

/// y [B, T, H, P] and S behind the last token [B, H, P, N], both f32. In chunks of tokens: products within a chunk, and one state handed from chunk
/// to chunk. Gradients flow to x, dt, a, b, c and state. Borders are masks, which no decay reaches over however it is rounded: packed texts give what
/// each gives alone. Throws std::invalid_argument when shapes or dtypes disagree.
std::pair<mx::array, mx::array> state_space(const StateSpace& in);

/// Mamba's recurrence (arXiv 2312.00752), of each channel and each of N entries of its state: h_t = exp(a Δ_t) h_{t−1} + Δ_t x_t b_t,
/// y_t = Σ_n h_t c_t.
struct SelectiveScan {
  mx::array x, dt;                                   ///< [B, T, C] f32; Δ at least 0
  mx::array a;                                       ///< [C, N] f32, at most 0
  mx::array b, c;                                    ///< [B, T, N] f32
  std::optional<mx::array> segments = std::nullopt;  ///< int32 [B, T]: where the number differs from the one before, h starts from 0
  std::optional<mx::array> state = std::nullopt;     ///< [B, C, N] f32: h in front of the first token; else 0. Not with segments
};

/// y [B, T, C] and h behind the last token [B, C, N], both f32. On a CPU a channel's states of all tokens are never in memory together but in the
/// backward pass, which makes them again, some channels at a time. Gradients flow to all but segments. Throws std::invalid_argument when shapes or
/// dtypes disagree.
std::pair<mx::array, mx::array> selective_scan(const SelectiveScan& in);

/// h_t = a_t ⊙ h_{t−1} + u_t along axis 1; a and u [B, T, …] f32 of one shape, first (h_{−1}) [B, …] or 0. Result as u. Where a_t is 0 nothing of the
/// tokens before is left, whatever it was (but NaN and infinity). Gradients flow to all three. Throws std::invalid_argument when shapes or dtypes
/// disagree.
mx::array linear_scan(const mx::array& a, const mx::array& u, const std::optional<mx::array>& first = std::nullopt);

}  // namespace lquant::kernels
