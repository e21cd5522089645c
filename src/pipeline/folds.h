#pragma once

#include <filesystem>

#include "model/fold.h"
#include "model/model.h"
#include "plan/plan.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// The file in an output of awq that holds its scales: safetensors, one tensor f32 for each edge that has some, named by the edge's
/// producer. Its name is none that mlx_lm reads.
inline constexpr const char* kFoldFile = "scales.awq";
/// What such a tensor's name starts with in a unit of a run.
inline constexpr const char* kFoldPrefix = "awq:";

/// The scales in a folder that awq has written, checked against the model that they are for. None when it has no such file. Throws Error, naming
/// the file, when it cannot be read or is for another architecture, and when there is no such folder.
model::Folds read_folds(const std::filesystem::path& folder, const model::ModelSpec& spec);

/// Scales whose producer is a linear rounded to powers of two, by which the scales and biases of packed linears are divided without rounding.
model::Folds as_powers_of_two(model::Folds folds, const model::ModelSpec& spec);

/// Takes the scales out of a unit of a run.
model::Folds take_folds(model::Tensors& unit);

/// A finished block's unit, packed, as a walk takes it: dense, in the compute dtype.
model::Tensors walked(const model::Model& model, const plan::QuantPlan& plan, model::Tensors unit);

/// A model's dense tensors with all of `folds` in them, in their own dtypes.
void fold_all(const model::ModelSpec& spec, const model::Folds& folds, model::Tensors& tensors, mx::Dtype stored);

}  // namespace lquant::pipeline
