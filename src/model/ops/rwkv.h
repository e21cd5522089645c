#pragma once

#include <mlx/array.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "model/op.h"

namespace lquant::model {

/// Two products with a function between them: second(f(first(x))).
struct LowRank {
  LinearSpec first, second;
};

/// RWKV-7's time mixing (arXiv 2503.14456): six mixes of a token's input with that of the token before give r, k, v, and by low ranks a decay w, a
/// rate a, a gate g and, behind the first layer, how much of that layer's v joins v; with κ = l2(k ⊙ k_k) the recurrence S ← S (diag(w) − κ (κ ⊙ a)ᵀ)
/// + v kᵀ, y = S r; then a norm by head and the gate. Stage 0: r, k, v and the first of the low ranks, on six inputs; stage 1: the second of these,
/// on one each; stage 2: output. A cache keeps the last input and S, [B, heads, head_dim, head_dim] in f32.
struct RwkvTimeMix final : Op {
  enum Mix { of_r, of_w, of_k, of_v, of_a, of_g };

  int heads = 0, head_dim = 0;
  std::array<ParameterSpec, 6> mixes;  ///< [1, 1, hidden] each, by Mix
  LinearSpec r, k, v;
  LowRank decay, rate, gate;
  std::optional<LowRank> value;          ///< of all layers but the first
  std::optional<int> first_values;       ///< the column of the state where the first layer's v is; with `value`
  ParameterSpec k_k, k_a, r_k;           ///< [heads, head_dim]
  ParameterSpec norm_weight, norm_bias;  ///< [heads, head_dim], of a layer norm over each head
  LinearSpec output;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 3; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  /// v, in the first layer.
  std::vector<mx::array> carried(const Flow& at) const override { return {at.kept.at(0)}; }
  std::vector<Edge> edges() const override;
  Traits traits() const override { return {.mixed_by = 2, .branches = false}; }

 private:
  std::vector<std::pair<const LowRank*, int>> low_ranks() const;  ///< with the Mix that each reads
};

/// RWKV-7's channel mixing: value(relu²(key(mix))), of a token's input and that of the token before. Stage 0: key; stage 1: value. A cache keeps the
/// last input.
struct RwkvChannelMix final : Op {
  ParameterSpec mix;  ///< [hidden]
  LinearSpec key, value;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override { return {key.path}; }
  std::vector<Edge> edges() const override;
  /// Tokens meet in front of stage 0 already.
  Traits traits() const override { return {.mixed_by = 1}; }
};

}  // namespace lquant::model
