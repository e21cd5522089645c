// Seed-OSS: Llama with biases on q, k and v. mlx_lm multiplies by a tied embedding as it is stored, which a packed one does not allow: it stays
// dense.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec seed_oss(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, true);
  decoder.qkv_bias = config.flag_or("attention_bias", false);
  decoder.o_bias = config.flag_or("attention_out_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  auto spec = decoder.build("seed_oss", make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false),
                                                  rope_scaling(config), config.count_or_none("max_position_embeddings")));
  if (decoder.tied) spec.embedding.dense_why = "mlx_lm multiplies by Seed-OSS's tied embedding as it is stored";
  return spec;
}

}  // namespace lquant::model::family
