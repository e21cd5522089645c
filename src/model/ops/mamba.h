#pragma once

#include <mlx/array.h>

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"
#include "model/ops/mamba2.h"

namespace lquant::model {

/// Mamba's mixer (arXiv 2312.00752): out(y ⊙ silu(z)), where x and z are two parts of one product, x passes taps and silu, and dt, B and C are parts
/// of another product that reads x. Of each channel c and entry n: h ← exp(−e^{A_log[c, n]} Δ_c) h + Δ_c x_c B_n, y_c = Σ_n h C_n + D_c x_c, with Δ =
/// softplus(dt product), in f32. With `by_head` the recurrence is Mamba-2's (PLaMo 2). Stage 0: input; 1: select; 2: dt; 3: output. A cache keeps h,
/// [B, inner, state] in f32.
struct Mamba final : Op {
  enum Input { x, z };        ///< numbers of input's parts
  enum Select { dts, b, c };  ///< of select's

  LinearSpec input;
  ParameterSpec taps;                      ///< [inner, taps, 1]
  std::optional<ParameterSpec> taps_bias;  ///< [inner]
  LinearSpec select;                       ///< dt's rank + 2 · state
  std::optional<NormSpec> dt_norm, b_norm, c_norm;
  LinearSpec dt;
  std::optional<ParameterSpec> a_log, d;  ///< [inner, state] and [inner]
  std::optional<HeadRecurrence> by_head;  ///< in place of these
  LinearSpec output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 4; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {input.path}; }
  std::vector<Edge> edges() const override;
  Traits traits() const override { return {.mixed_by = 3, .branches = false}; }
};

}  // namespace lquant::model
