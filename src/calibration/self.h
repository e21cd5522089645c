#pragma once

#include <functional>
#include <vector>

#include "calibration/examples.h"
#include "model/model.h"

namespace lquant::calibration {

/// Texts sampled from the teacher itself at temperature 1, from its beginning-of-text token: data-free distillation (arXiv
/// 2305.17888). `count` examples of at most `max_tokens` tokens, the same for the same seed. All of the teacher is in memory.
/// `progress(done, count)`.
std::vector<Example> sample_self(const model::Model& teacher, const text::Tokenizer& tokenizer, int count, int max_tokens, std::uint64_t seed,
                                 const std::function<void(std::int64_t, std::int64_t)>& progress);

}  // namespace lquant::calibration
