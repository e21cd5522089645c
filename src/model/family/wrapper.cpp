// Checkpoints of one wrapper come in three layouts: (a) "language_model.model." as transformers wrote before 4.52 (Qwen: "model."), (b)
// "model.language_model." with the head at the root, as its classes have it since, and (c) mlx-vlm's, which is (a) for all. Outputs are written as
// (c).
#include "model/family/wrapper.h"

#include <algorithm>

namespace lquant::model::family {

Config text_of(const Config& config, const nlohmann::json& given, const nlohmann::json& otherwise) {
  return config.child("text_config", given, otherwise).under(kTextPrefix);
}

ModelSpec wrapped(ModelSpec text, const std::vector<Tower>& parts) {
  const std::string prefix = kTextPrefix, model = prefix + "model.", head = prefix + "lm_head.";
  text.text_config = "text_config";
  text.imports.renames = {{model, "model.language_model."}, {model, "model."}, {head, "lm_head."}};
  auto& kept = text.imports.kept;
  for (const auto& part : parts) {
    kept.push_back({part.to + "*", part.what});
    for (const auto& from : part.from) kept.push_back({from + "*", part.what, from, part.to});
  }
  // "vision_tower.vision_model." says more than "vision_tower.".
  std::stable_sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.pattern.size() > b.pattern.size(); });
  return text;
}

std::vector<Tower> tower_and_projector(const std::string& inner) {
  Tower tower{"the vision tower", "vision_tower." + inner, {"model.vision_tower." + inner}};
  if (!inner.empty()) tower.from.insert(tower.from.end(), {"vision_tower.", "model.vision_tower."});
  return {tower, {"the projector", "multi_modal_projector.", {"model.multi_modal_projector."}}};
}

}  // namespace lquant::model::family
