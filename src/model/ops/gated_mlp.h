#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/gated.h"
#include "model/op.h"

namespace lquant::model {

/// down(activation(gate(x)) · up(x)) (GLU variants, arXiv 2002.05202). Stage 0: gate, up, result_gate; stage 1: down.
struct GatedMlp final : Op {
  kernels::Activation activation = kernels::Activation::silu;
  /// Only what exceeds mean + sparse_above · deviation of the token's gates passes, less that (Gemma 3n).
  std::optional<float> sparse_above;
  /// gate, up; or one linear with these two parts, gate first or up first.
  std::vector<LinearSpec> inputs;
  LinearSpec down;
  std::optional<kernels::ClampedGate> clamp;  ///< in place of the activation
  std::optional<kernels::Situ> situ;          ///< likewise
  std::optional<LinearSpec> result_gate;      ///< [1, H]: the result is multiplied by σ(result_gate(x)) (Qwen's shared experts)
  /// Of a result_gate of several rows: the factor is this entry of their softmax, and the op of row 0 has the linear among its contents (Klear).
  int result_row = 0;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;
};

/// Of each token what its result is multiplied by: h [..., H] → [..., 1]. σ of a gate of one row, of one of several an entry of their softmax.
mx::array result_factor(const Scope& scope, const LinearSpec& gate, int row, const mx::array& h);

/// up → down of a gated MLP, whose result is linear in up.
Edge gated_edge(const LinearSpec& up, const Part& rows, const LinearSpec& down);

}  // namespace lquant::model
