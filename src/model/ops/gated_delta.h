#pragma once

#include <string>
#include <vector>

#include "kernels/activation.h"
#include "model/op.h"

namespace lquant::model {

/// A gated delta net (arXiv 2412.06464): queries, keys and values of a short causal convolution with silu, queries and keys of length 1, a state for
/// each value head (kernels/gated_delta.h), a norm over each head's result and a gate on it. β = σ(b); the decay is exp(−e^a_log softplus(a +
/// dt_bias)). A cache keeps the convolution's last inputs and the state, in f32. Stage 0: inputs; stage 1: output.
struct GatedDelta final : Op {
  int key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  bool doubled = false;                                        ///< β = 2 σ(b) (arXiv 2411.12537)
  kernels::Activation activation = kernels::Activation::silu;  ///< of the gate
  /// Queries, keys, values, the gate, b, a: linears or their parts, in this order.
  std::vector<LinearSpec> inputs;
  /// [channels, taps, 1]: one convolution over queries, keys and values side by side, or one for each.
  std::vector<ParameterSpec> taps;
  ParameterSpec a_log, dt_bias;  ///< [value heads]
  NormSpec norm;                 ///< over value_dim
  LinearSpec output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;
  /// An ending would need the state that its text left.
  Traits traits() const override { return {.mixed_by = 1, .branches = false}; }
};

}  // namespace lquant::model
