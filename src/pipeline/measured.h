#pragma once

#include "pipeline/sensitivities.h"

namespace lquant::pipeline {

/// Measures what `estimated` predicts: each linear alone is replaced by its values in `format` and the divergence from the model is taken on
/// `rows`; its costs in all formats are multiplied by measured ÷ predicted. One linear's figure is one unit of the run, so that nothing is measured
/// twice. Of the model one block is in memory at a time, of activations those of all rows a few times.
Sensitivities measure_sensitivities(const model::Model& model, const Rows& rows, Sensitivities estimated, const codec::Format& format, run::RunFolder& run,
                                    const run::Context& context);

}  // namespace lquant::pipeline
