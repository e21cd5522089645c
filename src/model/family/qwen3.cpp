// Qwen3 (arXiv 2505.09388): norms over each head of q and k, no biases. transformers 5 writes rope_theta and the
// scaling into one "rope_parameters".
#include "model/family/family.h"
#include "model/family/gguf.h"

namespace lquant::model::family {

ModelSpec qwen3(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, std::nullopt);
  decoder.qk_norm = true;
  const auto nested = rope_scaling(config, "rope_parameters");
  const bool theta_nested = !config.has("rope_theta") && nested.is_object();
  const double theta = theta_nested ? Config(nested).number("rope_theta") : config.number("rope_theta");
  const auto scaling = config.has("rope_scaling") ? rope_scaling(config) : nested;
  return decoder.build("qwen3", make_rope(decoder.head_dim, theta, false, scaling, config.count("max_position_embeddings")));
}

gguf::Architecture qwen3_gguf() {
  return {.name = "qwen3",
          .model_type = "qwen3",
          .class_name = "Qwen3ForCausalLM",
          .block = rows::join({rows::kAttention, rows::kHeadNorms, rows::kNorms, rows::kMlp})};
}

}  // namespace lquant::model::family
