#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/figures.h"
#include "calibration/coverage.h"
#include "calibration/examples.h"
#include "model/model.h"
#include "run/context.h"
#include "run/run_folder.h"

// Rows for mixtures: few experts shall see too few tokens to be calibrated on.
namespace lquant::pipeline {

/// The unit of a run that holds what reach_experts chose.
inline constexpr const char* kChosenRows = "expert-rows";

/// Whether tokens are sent to experts.
bool has_routed_experts(const model::ModelSpec& spec);

/// Adds to `candidates` how many tokens of each example (not empty) go to each expert, as the model routes them in full precision. Blocks are loaded
/// one at a time, as often as this is called; activations of the examples are in memory.
void count_expert_tokens(const model::Model& model, const std::vector<calibration::Example>& examples, calibration::Candidates& candidates,
                         const run::Context& context);

/// Exchanges drawn examples for further ones (calibration::exchange_rows) where experts see fewer than `floor` tokens (default: a quarter of the mean
/// over all experts), and tells how many such experts there were and are. As many further ones as were drawn are counted at a time, and only while
/// experts lack tokens. The choice is the unit kChosenRows of the run; if that is there, it is
/// followed. → {"floor", "before", "after": experts below it, "exchanged": examples}
nlohmann::json reach_experts(const model::Model& model, calibration::Drawn& drawn, std::optional<int> floor, run::RunFolder& run,
                             const run::Context& context);

}  // namespace lquant::pipeline
