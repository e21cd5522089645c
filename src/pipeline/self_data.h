#pragma once

#include <cstdint>
#include <vector>

#include "base/figures.h"
#include "run/context.h"
#include "calibration/examples.h"
#include "model/model.h"
#include "run/run_folder.h"

namespace lquant::pipeline {

/// calibration::sample_self, kept as the unit "self" of the run: sampling again would be slow.
std::vector<calibration::Example> self_examples(const model::Model& model, const text::Tokenizer& tokenizer, int count, int max_tokens,
                                                std::uint64_t seed, run::RunFolder& run, const run::Context& context);

}  // namespace lquant::pipeline
