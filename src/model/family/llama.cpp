// Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and Mistral and others that mlx_lm runs with the same code. Layers named
// "sliding_attention" in layer_types see `sliding_window` keys; Mistral's bare sliding_window has no effect there.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec llama(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false),
                              rope_scaling(config), config.count_or_none("max_position_embeddings"));
  auto spec = decoder.build("llama", rope);

  if (config.has("layer_types")) {
    const auto types = config.texts("layer_types", decoder.layers);
    for (int i = 0; i < decoder.layers; ++i)
      if (types[i] == "sliding_attention") spec.blocks[i].attention.window = config.count("sliding_window");
  }
  return spec;
}

}  // namespace lquant::model::family
