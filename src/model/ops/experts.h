#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/gated.h"
#include "model/op.h"
#include "model/ops/router.h"

namespace lquant::model {

/// Mixture of experts (arXiv 1701.06538): each token's sum over the experts that the router chose, small MLPs, with the router's weights. Stage 0:
/// router, gate, up (the tokens sorted by expert, so that an expert's rows meet its weights in one product); stage 1: down. Experts that every token
/// meets are a branch of their own. With latents (Nemotron 3) `into` makes of the input what experts read, and `out_of` the result of their sum:
/// stage 0 is then router and into, before the two of the experts, and out_of is the last.
struct Experts final : Op {
  kernels::Activation activation = kernels::Activation::silu;
  std::optional<kernels::ClampedGate> clamp;  ///< in place of the activation
  std::optional<kernels::Situ> situ;          ///< likewise
  std::optional<NormSpec> router_norm;        ///< the router reads the branch's input as it came, through this norm (Gemma 4)
  /// The last so many of the router's experts have no weights: they give what they read (LongCat-Flash's zero experts).
  int identities = 0;
  bool weighs_inputs = false;  ///< the router's weights are factors of what experts read, not of their results (Llama 4)
  Router router;
  std::optional<LinearSpec> gate;  ///< none: down(activation(up(x)))
  LinearSpec up, down;
  std::optional<LinearSpec> into, out_of;  ///< both or none
  std::optional<NormSpec> in_norm;         ///< of what into makes, which the experts read
  std::optional<NormSpec> expert_norm;     ///< of each expert's result, before they are weighed and summed
  std::optional<NormSpec> out_norm;        ///< of what out_of reads
  std::optional<LinearSpec> result_gate;   ///< as GatedMlp's, row 0

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return into ? 4 : 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;

 private:
  std::vector<const LinearSpec*> inputs() const;
  Flow expand(const Scope& scope, const mx::array& input, const mx::array& of_router) const;
  mx::array sum(const Scope& scope, const Flow& at) const;
};

}  // namespace lquant::model
