#pragma once

#include <mlx/array.h>

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"
#include "model/rope.h"

namespace lquant::model {

/// Linear attention with a decay fixed for each head (Lightning Attention, arXiv 2401.04658): y_t = scale · Σ_{s ≤ t} λ^(t−s) (q_t · k_s) v_s, made
/// in f32; then out(norm(y) ⊙ σ(gate(x))), where the norm is over groups of heads. A cache keeps Σ_s λ^(t−s) k_s v_sᵀ of the last token. Stage 0:
/// input, gate; stage 1: output.
struct Lightning final : Op {
  int heads = 0, head_dim = 0;
  float scale = 1;
  std::vector<float> log_decays;           ///< ln λ of each head, at most 0
  std::optional<NormSpec> q_norm, k_norm;  ///< over each head, before the rotation
  std::optional<RopeSpec> rope;
  NormSpec norm;     ///< of heads · head_dim weights
  int groups = 1;    ///< each of so many equal parts of y is normed by itself
  LinearSpec input;  ///< parts q, k, v in this order
  LinearSpec gate, output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {input.path, gate.path}; }
  std::vector<Edge> edges() const override;
  Traits traits() const override { return {.mixed_by = 1, .branches = false}; }
};

/// ln λ of each head: ALiBi's slopes (arXiv 2108.12409), negative, times `factor`.
std::vector<float> lightning_decays(int heads, double factor);

}  // namespace lquant::model
