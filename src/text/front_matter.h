#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace lquant::text {

/// The YAML between two lines of three dashes at the very start of a model card (https://huggingface.co/docs/hub/model-cards) as a JSON object; an empty
/// one when there is none. Throws Error when it is no valid YAML or no list of keys.
nlohmann::json front_matter(std::string_view card);

}  // namespace lquant::text
