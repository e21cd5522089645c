#pragma once

#include <functional>
#include <vector>

#include "base/figures.h"
#include "calibration/hessian.h"
#include "model/spec.h"
#include "run/context.h"

namespace lquant::pipeline {

/// What the matrices of a stack have read, in one or more sets of batches that count together.
using StackInputs = std::vector<const calibration::ExpertInputs*>;

/// Calls visit(e, h) once for each matrix of a stack, with one Hessian in memory, or two. Routed experts that saw too few tokens of their own lean on
/// the inputs of all of them together, and come last: then those are known.
void each_hessian(const model::LinearSpec& linear, const StackInputs& inputs, const std::function<void(int e, const calibration::Hessian& h)>& visit);

/// The tokens that each of these Hessians will have.
std::vector<double> tokens_of(const model::LinearSpec& linear, const StackInputs& inputs);

/// Warns of experts that lean on others, and names them.
void warn_of_starved(const model::LinearSpec& linear, const StackInputs& inputs, const run::Context& context);

}  // namespace lquant::pipeline
