#pragma once

#include <mlx/array.h>

#include <optional>
#include <utility>

namespace lquant::kernels {

namespace mx = mlx::core;

/// The gated delta rule (arXiv 2412.06464): of each value head a state S [Dv, Dk], which every token decays, corrects and reads:
///   S ← e^(log_decay) S;  S ← S + beta (v − S k) kᵀ;  y = S q.
/// q and k [B, T, Hk, Dk], v [B, T, Hv, Dv] of one dtype (f32, bf16, f16); Hv a multiple of Hk, and value head h reads key head h / (Hv / Hk).
/// log_decay and beta [B, T, Hv] float, log_decay at most 0; or log_decay [B, T, Hv, Dk], a decay for each key channel, S ← S diag(e^log_decay) (Kimi
/// delta attention, arXiv 2510.26692). segments int32 [B, T]: where the number differs from that of the token before, a text
/// begins, for which S is 0. state f32 [B, Hv, Dv, Dk]: S before the first token, 0 when it is not given; not together with segments.
/// {y [B, T, Hv, Dv] in q's dtype, S behind the last token in f32}. All inside is f32, in chunks of tokens (arXiv 2406.06484): memory is linear in T.
/// Gradients flow to q, k, v, log_decay, beta and state. Throws std::invalid_argument when shapes or dtypes disagree.
std::pair<mx::array, mx::array> gated_delta(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                            const mx::array& beta, const std::optional<mx::array>& segments = std::nullopt,
                                            const std::optional<mx::array>& state = std::nullopt);

}  // namespace lquant::kernels
