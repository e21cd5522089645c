#pragma once

#include <mlx/array.h>

#include <functional>
#include <optional>
#include <vector>

#include "model/model.h"

// Which errors of the hidden states between blocks a model's predictions mind, and how much.
namespace lquant::calibration {

namespace mx = mlx::core;

/// To second order an error δ of the states behind a block costs a token ½ δᵀ F δ nats of KL divergence, F = E[g gᵀ] with g the gradient of a
/// predicted token's log-probability by these states (Fisher's information, here of the texts' own tokens; BRECQ, Li et al., arXiv 2102.05426, weighs
/// a block's outputs by its diagonal, GuidedQuant, Kim et al., arXiv 2505.07004, those of a linear).
///
/// Sums g gᵀ over the tokens of the batches (ids int32 [B, T], segments as model::Context has them, or empty) for every block and hands it out as
/// F f32 [H, H], divided by the tokens, from the last block to the first; of a block that runs more than once, the sum over its runs. In memory: one
/// block's weights, the states of these batches behind every block, the work of one batch. Throws what loading throws.
void block_sensitivities(const model::Model& model, const std::vector<mx::array>& ids, const std::vector<mx::array>& segments,
                         const std::function<void(int block, const mx::array& fisher)>& take);

}  // namespace lquant::calibration
