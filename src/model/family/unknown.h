#pragma once

#include <string>
#include <vector>

#include "model/family/config.h"

namespace lquant::model::family {

/// What is said of a model type that no family has, in under 400 characters: the `known` types nearest by name, what the config's fields tell of the
/// architecture, where the list of types is and how to add one.
std::string unknown_type(const std::string& type, const Config& config, const std::vector<std::string>& known);

}  // namespace lquant::model::family
