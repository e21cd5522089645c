// Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases on q, k and v. Its sliding window is not used by mlx_lm.
#include "model/family/family.h"
#include "model/family/gguf.h"

namespace lquant::model::family {

ModelSpec qwen2(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  decoder.read_tie(config, true);
  decoder.qkv_bias = true;
  return decoder.build("qwen2", make_rope(decoder.head_dim, config.number_or("rope_theta", 1e6), config.flag_or("rope_traditional", false),
                                          rope_scaling(config), config.count_or("max_position_embeddings", 32768)));
}

gguf::Architecture qwen2_gguf() {
  return {
      .name = "qwen2", .model_type = "qwen2", .class_name = "Qwen2ForCausalLM", .block = rows::join({rows::kAttention, rows::kNorms, rows::kMlp})};
}

}  // namespace lquant::model::family
