// Kimi-VL (arXiv 2504.07491) and Kimi K2.5: a tower and a projector before a DeepSeek-V3.
#include "model/family/family.h"
#include "model/family/wrapper.h"

namespace lquant::model::family {

ModelSpec kimi_k25(const Config& config) {
  return wrapped(
      deepseek_v3(text_of(config)),
      {{"the vision tower", "vision_tower.", {}}, {"the projector", "mm_projector.", {}}, {"the projector", "multi_modal_projector.", {}}});
}

ModelSpec kimi_vl(const Config& config) { return wrapped(deepseek_v3(text_of(config)), tower_and_projector()); }

}  // namespace lquant::model::family
