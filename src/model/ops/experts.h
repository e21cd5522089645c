#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/gated.h"
#include "model/op.h"

namespace lquant::model {

/// Mixture of experts: softmax over the router's outputs, the top_k largest, their gated MLPs weighted by those probabilities. Stage 0: router, gate,
/// up (the tokens sorted by expert, so that an expert's rows meet its weights in one product); stage 1: down.
struct Experts final : Op {
  kernels::Activation activation = kernels::Activation::silu;
  int experts = 0, top_k = 0;
  bool normalize = false;                       ///< the kept probabilities are divided by their sum
  bool over_chosen = false;                     ///< softmax over the chosen outputs alone, in the compute dtype
  std::optional<NormSpec> router_norm;          ///< the router reads the branch's input as it came, through this norm (Gemma 4)
  std::optional<ParameterSpec> expert_factors;  ///< [experts]: each probability is multiplied by that of its expert
  LinearSpec router, gate, up, down;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;
};

}  // namespace lquant::model
