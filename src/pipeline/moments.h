#pragma once

#include <mlx/array.h>

#include <map>
#include <string>

namespace lquant::pipeline {

namespace mx = mlx::core;

/// Second moments by linear: f32 [K], or [E, K] for experts, whose rows arrive sorted.
using Moments = std::map<std::string, mx::array>;

/// Adds those of one input, as a model::Observer is told of it. Evaluated.
void add_moment(Moments& moments, const std::string& path, const mx::array& input, const mx::array* offsets);

}  // namespace lquant::pipeline
