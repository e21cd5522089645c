#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "evaluate/encode.h"
#include "evaluate/quality.h"

namespace lquant::evaluate {

/// Log-likelihoods of each choice, in nats.
using Likelihoods = std::vector<double>;

/// Tokens that a question costs: its choices' common beginning counts once.
std::size_t cost(const Encoded& question);

/// Consecutive questions of about `budget` tokens together (one that is larger by itself stands alone), as [begin, end).
std::vector<std::pair<std::size_t, std::size_t>> batches(std::span<const Encoded> questions, std::size_t budget);

/// One forward pass over one row in which the questions stand behind each other without padding, each with its choices' common beginning once
/// and then what is left of every choice (model::Branches). Logits are made at scored places alone, a chunk at a time. Questions longer than the
/// smallest window of the model's layers, or with more than 255 choices, are run choice by choice.
/// NaN where the model gives no numbers.
std::vector<Likelihoods> score(const LoadedModel& model, const model::Head& head, std::span<const Encoded> questions);

}  // namespace lquant::evaluate
