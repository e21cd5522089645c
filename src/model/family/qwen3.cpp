// Qwen3 (arXiv 2505.09388): norms over each head of q and k, no biases.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec qwen3(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, std::nullopt);
  decoder.qk_norm = true;
  return decoder.build("qwen3", make_rope(decoder.head_dim, config.number("rope_theta"), false, rope_scaling(config),
                                          config.count("max_position_embeddings")));
}

}  // namespace lquant::model::family
