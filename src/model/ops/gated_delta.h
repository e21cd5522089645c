#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "model/op.h"

namespace lquant::model {

/// A gated delta net (arXiv 2412.06464): queries, keys and values of a short causal convolution with silu, queries and keys of length 1, a state for
/// each value head (kernels/gated_delta.h), a norm over each head's result and a gate on it. β = σ(b); the decay is exp(−e^a_log softplus(a +
/// dt_bias)), or exp(lower_bound · σ(e^a_log (a + dt_bias))), for each value head, or, with a and dt_bias of key_dim numbers a head, for each of its
/// channels (Kimi delta attention, arXiv 2510.26692). A cache keeps the convolution's last inputs and the state, in f32. Stage 0: inputs; stage 1, of
/// a net that has them: gate_up, decay_up; the last stage: output.
struct GatedDelta final : Op {
  int key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  bool by_channel = false;                                     ///< decays are
  bool doubled = false;                                        ///< β = 2 σ(b) (arXiv 2411.12537)
  std::optional<float> lower_bound;                            ///< of the decays' logarithms, below 0
  kernels::Activation activation = kernels::Activation::silu;  ///< of the gate
  /// Queries, keys, values, the gate, b, a: linears or their parts, in this order.
  std::vector<LinearSpec> inputs;
  /// Where the gate and a are of low rank, what makes them of the inputs' products; gate_up not without decay_up.
  std::optional<LinearSpec> gate_up, decay_up;
  /// [channels, taps, 1]: one convolution over queries, keys and values side by side, or one for each.
  std::vector<ParameterSpec> taps;
  /// a_log: a number for each value head; dt_bias [value heads], or [value heads · key_dim] where decays are by channel.
  ParameterSpec a_log, dt_bias;
  NormSpec norm;  ///< over value_dim
  LinearSpec output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return decay_up ? 3 : 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;
  /// An ending would need the state that its text left.
  Traits traits() const override { return {.mixed_by = stages() - 1, .branches = false}; }

 private:
  mx::array log_decays(const Scope& scope, const mx::array& a) const;
};

}  // namespace lquant::model
