// Helium: Llama in which neighbouring features turn together.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec helium(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  decoder.read_tie(config, std::nullopt);
  if (decoder.tied) fail("model", "config.json: \"tie_word_embeddings\" is true, and mlx_lm opens no Helium model without a head of its own");
  decoder.qkv_bias = config.flag("attention_bias");
  decoder.mlp_bias = config.flag("mlp_bias");
  for (const char* unused : {"head_dim", "max_position_embeddings"}) config.count(unused);  // mlx_lm opens no model without them
  return decoder.build("helium", make_rope(decoder.head_dim, with_flat_positions(config).number("rope_theta"), true, nullptr, 0));
}

}  // namespace lquant::model::family
