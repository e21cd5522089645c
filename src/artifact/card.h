#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace lquant::artifact {

/// How a card speaks of the model: where it lies, and what it was made from. All UTF-8; quoted for the shell in commands.
struct CardNames {
  std::string title;                  ///< the output folder's own name, or the repository's
  std::string place;                  ///< what mlx_lm loads: the folder, or "user/name"
  std::optional<std::string> source;  ///< --model of the command that made it; none: the original's name on the hub, or the name in the record
};

/// Those of a folder on this machine, whose card is read beside it.
CardNames names_of(const std::filesystem::path& folder);
/// Those of a repository, "user/name".
CardNames names_of_repository(const std::string& repo);

/// The model card (https://huggingface.co/docs/hub/model-cards) that is made of an output's lquant.json and config.json: front matter (library, task,
/// base model, licence and languages of the base's card, tags; "N-bit" alone where all linears have N bits), what the model was made from and how, true
/// bits per weight, what was measured, the command, and the use with mlx_lm. The same bytes for the same arguments. Throws json::exception when the record
/// lacks what every record has.
std::string model_card(const nlohmann::json& record, const nlohmann::json& config, const CardNames& names);

/// Whether a README.md is a card of lquant's, which lquant may write anew: its front matter has the tag. Throws Error when that is no valid YAML.
bool is_ours(const std::string& readme);

}  // namespace lquant::artifact
