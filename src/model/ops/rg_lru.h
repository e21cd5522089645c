#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/op.h"

namespace lquant::model {

/// Griffin's recurrent block (arXiv 2402.19427): out(gelu(y product) ⊙ h), where taps over the x product give x, and h ← a ⊙ h + √(1 − a²) ⊙ σ(W_x x)
/// ⊙ x with a = exp(−8 σ(W_a x) softplus(p)); at a text's first token the root is 1. W_x and W_a are block-diagonal, a matrix a head, and multiply
/// from the right. All of the recurrence is f32. Stage 0: y, x; stage 1: output. A cache keeps h, [B, width] in f32.
struct RgLru final : Op {
  int heads = 1;
  LinearSpec y, x;
  ParameterSpec taps, taps_bias;              ///< [width, taps, 1], [width]
  ParameterSpec input_gate, input_gate_bias;  ///< [heads, width / heads, width / heads], [heads, width / heads]
  ParameterSpec decay_gate, decay_gate_bias;  ///< the same
  ParameterSpec rate;                         ///< p, [width]
  LinearSpec output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {y.path, x.path}; }
  Traits traits() const override { return {.mixed_by = 1, .branches = false}; }
};

}  // namespace lquant::model
