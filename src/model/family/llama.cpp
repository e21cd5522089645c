// Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and Mistral and others that mlx_lm runs with the same code. Layers named
// "sliding_attention" in layer_types see `sliding_window` keys; Mistral's bare sliding_window has no effect there.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec llama_like(const Config& config, const std::string& family, const std::function<void(Layer&)>& change) {
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false),
                              rope_scaling(config), config.count_or_none("max_position_embeddings"));
  const auto types = config.has("layer_types") ? config.texts("layer_types", decoder.layers) : std::vector<std::string>(decoder.layers);
  return decoder.build(family, rope, [&](Layer& layer) {
    if (types[layer.index] == "sliding_attention") layer.attention.window = config.count("sliding_window");
    if (change) change(layer);
  });
}

ModelSpec llama(const Config& config) { return llama_like(config, "llama", nullptr); }

}  // namespace lquant::model::family
