#pragma once

#include <string>
#include <vector>

#include "model/family/family.h"

// What a model that sees or hears has in common with others: a config.json whose "text_config" describes the text model, text tensors under one of
// three prefixes, and towers and projectors, which lquant keeps as they are. A family's file says which defaults its class has and what its tower is
// called.
namespace lquant::model::family {

/// Under which an output has the text model's tensors, as mlx_lm and mlx-vlm name them.
inline constexpr const char* kTextPrefix = "language_model.";

/// The text model's fields, for its own family to read. `given` and `otherwise` as Config::child has them.
Config text_of(const Config& config, const nlohmann::json& given = nlohmann::json::object(),
               const nlohmann::json& otherwise = nlohmann::json::object());

/// A tower or projector: its tensors begin with `to` in an output, and with one of `from` in checkpoints (or with `to`).
struct Tower {
  std::string what;  ///< "the vision tower"
  std::string to;    ///< "vision_tower."
  std::vector<std::string> from;
};

/// Makes the spec that a text family read a wrapper's: the layouts that checkpoints have, and the parts to keep. Of two beginnings of a name the
/// longer counts.
ModelSpec wrapped(ModelSpec text, const std::vector<Tower>& parts);

/// "vision_tower." and "multi_modal_projector.", which several wrappers have. `inner` is what stands behind "vision_tower." in an output, whether a
/// checkpoint has it or not ("vision_model."); may be empty.
std::vector<Tower> tower_and_projector(const std::string& inner = {});

}  // namespace lquant::model::family
