#pragma once

#include <filesystem>
#include <string>

#include "base/figures.h"
#include "run/context.h"

namespace lquant::hub {

/// The model card of a folder that lquant made, for the repository `repo` ("user/name"): front matter (library_name, pipeline_tag, base_model, tags;
/// licence and languages from the card of the model it was made from) and, from lquant.json, how it was made, its size, what was measured and how to
/// use it (https://huggingface.co/docs/hub/model-cards). A README.md that lquant did not write is returned as it is. Throws Error when lquant.json or
/// the base's front matter is damaged. Without the hub's library, whose YAML reader it takes, licence and languages are left out, which is said.
std::string model_card(const std::filesystem::path& folder, const std::string& repo, const run::Context& context);

}  // namespace lquant::hub
