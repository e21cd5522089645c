#pragma once

#include "pipeline/auto.h"

namespace lquant::pipeline {

/// What auto's steps will take on this machine: time by the operations of each and the rate of a product that is measured now, memory by what each
/// holds. Both are guesses within a factor of two.
std::vector<AutoStep> expect(const AutoRun& options, const model::Model& model);

/// Prints the plan of a run: target, size, steps, time and memory.
void tell(const std::vector<AutoStep>& steps, const AutoRun& options, const model::Model& model, const run::Context& context);

}  // namespace lquant::pipeline
