// Youtu-LLM: Llama with latent attention (arXiv 2405.04434). The scale of scores does not follow YaRN's.
#include "model/family/family.h"
#include "model/family/latent.h"

namespace lquant::model::family {

ModelSpec youtu_llm(const Config& given) {
  const auto config = given.filled({{"vocab_size", 128256},
                                    {"hidden_size", 2048},
                                    {"intermediate_size", 6144},
                                    {"num_hidden_layers", 32},
                                    {"num_attention_heads", 16},
                                    {"num_key_value_heads", 16},
                                    {"kv_lora_rank", 512},
                                    {"qk_rope_head_dim", 64},
                                    {"v_head_dim", 128},
                                    {"qk_nope_head_dim", 128},
                                    {"max_position_embeddings", 131072},
                                    {"rms_norm_eps", 1e-6},
                                    {"rope_theta", 1600000.0}});
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.read_tie(config, true);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  auto sizes = Latent::read(config, decoder, 1536);
  sizes.eps = decoder.eps;
  sizes.rope = make_rope(sizes.rotated, config.number("rope_theta"), config.flag_or("rope_traditional", true), rope_scaling(config),
                         config.count("max_position_embeddings"));
  Imports imports;
  return decoder.build("youtu_llm", std::nullopt,
                       [&](Layer& layer) { layer.mixer = std::make_shared<const LatentAttention>(latent_attention(layer, sizes, imports)); });
}

}  // namespace lquant::model::family
