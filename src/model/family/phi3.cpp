// Phi-3, 3.5 and 4-mini (arXiv 2404.14219): q, k, v in one linear, gate and up in another; part of a head's features may turn;
// long contexts by LongRoPE. A scaling other than longrope, su and linear is ignored, as mlx_lm does.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec phi3(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  decoder.tied = config.flag_or("tie_word_embeddings", false);
  decoder.fused = true;
  const int turning = static_cast<int>(decoder.head_dim * config.number_or("partial_rotary_factor", 1));

  auto scaling = config.value("rope_scaling");
  const std::string type = scaling.is_object() ? scaling.value("type", "") : "";
  if (type == "longrope" || type == "su") {
    scaling["original_max_position_embeddings"] = config.count_or("original_max_position_embeddings", 4096);
  } else if (type != "linear") {
    scaling = nullptr;
  }
  const bool interleaved = scaling.is_object() && type != "linear" ? false : config.flag_or("rope_traditional", false);
  return decoder.build(
      "phi3", make_rope(turning, config.number_or("rope_theta", 10000), interleaved, scaling, config.count_or("max_position_embeddings", 131072)));
}

}  // namespace lquant::model::family
