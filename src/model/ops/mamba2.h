#pragma once

#include <mlx/array.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "model/op.h"

namespace lquant::model {

/// The recurrence of Mamba-2 (arXiv 2405.21060) with its numbers by head: Δ = clip(softplus(dt + dt_bias), least, most), in f32;
/// S ← exp(−e^{A_log} Δ) S + Δ x Bᵀ, y = S C + D x. A cache keeps S, [B, heads, head_dim, state] in f32.
struct HeadRecurrence {
  int heads = 0, head_dim = 0, groups = 1, state = 0;  ///< heads of a group share B and C
  double least = 0, most = std::numeric_limits<double>::infinity();
  ParameterSpec dt_bias, a_log, d;  ///< [heads] each

  void contents(Contents& all) const;
  /// x [B, T, heads · head_dim], b and c [B, T, groups · state], dt [B, T, heads] → as x.
  mx::array apply(const Scope& scope, const mx::array& x, const mx::array& b, const mx::array& c, const mx::array& dt) const;
};

/// Mamba-2's mixer: out(norm(silu(gate) ⊙ recurrence(x, B, C, dt))), where one product gives gate, x, B, C and dt, and x, B and C pass taps and silu
/// first. Without norm there is the gate alone. Stage 0: input; stage 1: output.
struct Mamba2 final : Op {
  LinearSpec input;                        ///< parts: gate, what the taps read (x, B, C), dt
  ParameterSpec taps;                      ///< [inner + 2 · groups · state, taps, 1]
  std::optional<ParameterSpec> taps_bias;  ///< [inner + 2 · groups · state]
  HeadRecurrence recurrence;
  std::optional<NormSpec> norm;
  bool gate_behind_norm = false;  ///< silu(gate) ⊙ norm(y) instead
  LinearSpec output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {input.path}; }
  std::vector<Edge> edges() const override;
  Traits traits() const override { return {.mixed_by = 1, .branches = false}; }
};

/// From a norm inside an op to the one linear that reads it; its weight is a factor of each of that linear's columns.
Edge inner_norm_edge(const NormSpec& norm, const LinearSpec& reader);

/// silu(convolved(x) + bias).
mx::array convolved_silu(const Scope& scope, const ParameterSpec& taps, const std::optional<ParameterSpec>& bias, const mx::array& x);

/// Columns first … first + count of x [..., n].
mx::array columns(const mx::array& x, int first, int count);

}  // namespace lquant::model
