#pragma once

#include <vector>

#include "base/figures.h"
#include "calibration/hessian.h"
#include "model/spec.h"
#include "run/context.h"

namespace lquant::pipeline {

/// The Hessians to use for a linear: experts that saw too few tokens of their own lean on the inputs of all of them together, with
/// a warning that names them. Matrices of a stack that is not routed see all tokens.
std::vector<calibration::Hessian> supported(const model::LinearSpec& linear, std::vector<calibration::Hessian> sums, const run::Context& context);

}  // namespace lquant::pipeline
