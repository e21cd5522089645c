// Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and Mistral and others that mlx_lm runs with the same code. Layers named
// "sliding_attention" in layer_types see `sliding_window` keys; Mistral's bare sliding_window has no effect there.
#include "model/family/family.h"
#include "model/family/gguf.h"

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

gguf::Architecture llama_gguf() {
  return {.name = "llama",
          .model_type = "llama",
          .class_name = "LlamaForCausalLM",
          .block = rows::join({rows::kInterleavedAttention, rows::kNorms, rows::kMlp}),
          .complete = [](const auto&, const auto& tensors, auto& config) { gguf_biases(tensors, config); }};
}

/// Mixtral, which GGUF files call llama with experts: stacked, or one by one as the first converters wrote them.
gguf::Architecture mixtral_gguf() {
  constexpr rows::Row kExperts[] = {{"ffn_gate_inp", "block_sparse_moe.gate"},
                                    {"ffn_gate_exps", "block_sparse_moe.switch_mlp.gate_proj"},
                                    {"ffn_up_exps", "block_sparse_moe.switch_mlp.up_proj"},
                                    {"ffn_down_exps", "block_sparse_moe.switch_mlp.down_proj"},
                                    {"ffn_gate.*", "block_sparse_moe.experts.*.w1"},
                                    {"ffn_down.*", "block_sparse_moe.experts.*.w2"},
                                    {"ffn_up.*", "block_sparse_moe.experts.*.w3"}};
  return {.name = "llama",
          .model_type = "mixtral",
          .class_name = "MixtralForCausalLM",
          .block = rows::join({rows::kInterleavedAttention, rows::kNorms, kExperts}),
          .complete = [](const auto& metadata, const auto&, auto& config) {
            gguf::Fields fields(metadata, config);
            fields.count("num_local_experts", "expert_count");
            fields.count("num_experts_per_tok", "expert_used_count");
          }};
}

}  // namespace lquant::model::family
