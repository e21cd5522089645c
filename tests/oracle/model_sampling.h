#pragma once

#include <vector>

#include "model/generate.h"

namespace lquant::oracle {

/// The probability of each token under mlx_lm's sampler, written down from its definition: the filters top_p, min_p and top_k one
/// after the other on the whole distribution, then the tempered softmax of what is left. Logits must be distinct.
std::vector<double> sampling_distribution(const std::vector<float>& logits, const model::SampleOptions& options);

}  // namespace lquant::oracle
