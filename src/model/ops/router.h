#pragma once

#include <mlx/array.h>

#include <optional>

#include "model/op.h"

namespace lquant::model {

/// Which experts a token goes to, and with what weights. From the logits of a linear: scores; of each token the top_k largest, by score plus
/// correction; their weights are the scores without it. The choice has no gradient, the weights have.
struct Router {
  enum class Score {
    softmax,         ///< over all experts
    softmax_chosen,  ///< the choice is by logits; softmax over those of the chosen (Mixtral)
    sigmoid,         ///< of each (arXiv 2412.19437)
    sigmoid_chosen,  ///< the choice is by logits; of those of the chosen (Llama 4)
    sqrt_softplus,   ///< of each
    /// Experts are chosen one after the other, the largest logit first. Its weight is its share in a softmax over those that are not chosen yet and
    /// whose logit g is near the largest one, m: (m − g) / max(|g|, m) ≤ 2 · jitter (GRIN, arXiv 2409.12136, without its noise).
    sparse_mixer,
  };
  /// What the choice is made of; the experts of the groups that lose have the score `lost`.
  struct Groups {
    int count = 1, kept = 1;
    bool by_two = true;  ///< a group's score is the sum of its two largest (DeepSeek-V3), or the largest (DeepSeek-V2)
    float lost = 0;      ///< mlx_lm's masks have 0, in some families −∞
  };

  LinearSpec linear;
  int experts = 0, top_k = 0;
  Score score = Score::softmax;
  float logit_factor = 1;                   ///< of the logits, before anything is made of them
  float softcap = 0;                        ///< above 0: the logits become softcap · tanh(logit / softcap) first (Laguna)
  float temperature = 1;                    ///< the logits are divided by it
  bool f32 = false;                         ///< scores and weights are f32, else of the compute dtype
  bool f32_product = false;                 ///< the product with the router's weight is made in f32 too
  bool rounded = false;                     ///< what comes of it is rounded to the compute dtype again
  float jitter = 0;                         ///< of the sparse mixer
  std::optional<ParameterSpec> correction;  ///< [experts]
  Groups groups;
  bool normalize = false;                       ///< the weights are divided by their sum,
  float epsilon = 0;                            ///< plus this,
  float floor = 0;                              ///< or by this, where that is less
  float factor = 1;                             ///< of the weights
  std::optional<ParameterSpec> expert_factors;  ///< [experts]: of each expert's weight
};

struct Choice {
  mx::array experts;  ///< int32 [T, top_k]
  mx::array weights;  ///< [T, top_k]
};

/// input [T, H].
Choice choose(const Scope& scope, const Router& router, const mx::array& input);

}  // namespace lquant::model
