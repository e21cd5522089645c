#pragma once

#include <vector>

#include "evaluate/quality.h"

namespace lquant::evaluate {

/// A model's answers to all batches, computed block by block: of the model one block is in memory at a time, and its head in the end.
Answers stream_answers(const model::Model& model, const std::vector<calibration::Batch>& batches);

}  // namespace lquant::evaluate
