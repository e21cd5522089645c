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

/// Calls visit(e, h) once for each matrix of a stack, with one Hessian in memory, or three of routed experts. Routed experts lean on all of them
/// together: for a linear of K inputs an expert's H is its own, Σ over its n tokens, and 2K times the mean over the tokens of all experts, so that
/// the mean's share 2K / (n + 2K) falls as the expert sees more. Without tokens there is no mean.
void each_hessian(const model::LinearSpec& linear, const StackInputs& inputs, const std::function<void(int e, const calibration::Hessian& h)>& visit);

/// The tokens that each of these Hessians will have.
std::vector<double> tokens_of(const model::LinearSpec& linear, const StackInputs& inputs);

/// Warns of routed experts that saw fewer tokens than an eighth of their inputs, and names them.
void warn_of_starved(const model::LinearSpec& linear, const StackInputs& inputs, const run::Context& context);

}  // namespace lquant::pipeline
