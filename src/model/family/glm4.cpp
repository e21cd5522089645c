// GLM-4-0414's dense models: norms on both sides of each sub-layer, gate and up in one linear, a part of each head turns, in neighbouring pairs.
// Layers behind the last one predict several tokens at once.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec glm4(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.tied = false;
  decoder.qkv_bias = config.flag("attention_bias");
  decoder.fused_mlp = true;
  decoder.names.attention_post_norm = "post_self_attn_layernorm";
  decoder.names.mlp_post_norm = "post_mlp_layernorm";
  const auto flat = with_flat_positions(config);
  auto spec = decoder.build("glm4", make_rope(rotated_features(flat, decoder.head_dim, std::nullopt), flat.number("rope_theta"),
                                              config.filled({{"rope_traditional", true}}).flag("rope_traditional"), nullptr, 0));
  spec.left_out.push_back({"model.layers." + std::to_string(decoder.layers) + ".*", kNotRun});
  return spec;
}

}  // namespace lquant::model::family
