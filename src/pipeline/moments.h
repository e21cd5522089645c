#pragma once

#include <mlx/array.h>

#include <map>
#include <optional>
#include <string>

#include "model/forward.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// Second moments by linear: f32 [K], or [E, K] for experts.
using Moments = std::map<std::string, mx::array>;

/// Adds those of one input, as a model::Observer is told of it, over the tokens that count (`counted`, int32; nullopt: all of them; padding does
/// not). Evaluated.
void add_moment(Moments& moments, const std::string& path, const mx::array& input, const model::ExpertRows* experts,
                const std::optional<mx::array>& counted);

}  // namespace lquant::pipeline
