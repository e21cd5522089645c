// SmolLM3: Llama, but some layers (every fourth unless listed) know no positions (NoPE, arXiv 2501.18795).
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec smollm3(const Config& config) {
  auto spec = llama(config);
  spec.family = "smollm3";
  const int layers = static_cast<int>(spec.blocks.size());
  const int interval = config.count_or("no_rope_layer_interval", 4);
  const auto listed = config.has("no_rope_layers") ? config.counts("no_rope_layers", layers) : std::vector<int>{};
  for (int i = 0; i < layers; ++i) {
    const bool rotates = listed.empty() ? (i + 1) % interval != 0 : listed[i] != 0;  // the list holds 1 where positions are used
    if (!rotates) spec.blocks[i].attention.rope.reset();
  }
  return spec;
}

}  // namespace lquant::model::family
