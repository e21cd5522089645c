// LFM2-VL: LFM2 behind a SigLIP tower. mlx_lm knows the type as "lfm2-vl" alone; transformers writes "lfm2_vl".
#include "model/family/wrapper.h"

namespace lquant::model::family {

ModelSpec lfm2_vl(const Config& config) {
  if (config.text("model_type") != "lfm2-vl") config.settle("model_type", "lfm2-vl");
  auto parts = tower_and_projector();
  for (const char* from : {"vision_tower.vision_model.", "model.vision_tower.vision_model."}) parts[0].from.emplace_back(from);
  return wrapped(lfm2(text_of(config, nlohmann::json::object(), {{"model_type", "lfm2"}})), parts);
}

}  // namespace lquant::model::family
