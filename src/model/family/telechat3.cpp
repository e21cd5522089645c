// TeleChat 3: Llama, with positions by YaRN under a name of its own.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec telechat3(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  const auto flat = with_flat_positions(config);
  return decoder.build("telechat3",
                       make_rope(decoder.head_dim, flat.number("rope_theta"), false, rope_scaling(flat), config.count("max_position_embeddings")));
}

}  // namespace lquant::model::family
