#pragma once

#include <string>
#include <vector>

#include "base/figures.h"
#include "calibration/batches.h"
#include "model/model.h"
#include "pipeline/output.h"
#include "plan/plan.h"
#include "run/context.h"
#include "run/run_folder.h"

namespace lquant::pipeline {

/// Quantizes a model by range search, each linear weighted by the second moments of its own inputs on `batches`, without padding: what every
/// method starts from. Block by block with one block of the model in memory; each finished block is a unit of the run.
/// Returns the packed model (embedding and head included), scales and biases in the model's stored dtype.
model::Tensors search_start(const model::Model& model, const plan::QuantPlan& plan, const std::vector<calibration::Batch>& batches,
                            run::RunFolder& run, const run::Context& context);

/// The same for what only writes the packed model: its tensors stay in the run's units, whose names start with `units`. In memory is one of them
/// at a time. The run folder must be active.
UnitOfTensor search_units(const model::Model& model, const plan::QuantPlan& plan, const std::vector<calibration::Batch>& batches, run::RunFolder& run,
                          const run::Context& context, const std::string& units);

}  // namespace lquant::pipeline
