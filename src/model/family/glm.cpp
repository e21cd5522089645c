// GLM-4-9B as transformers saves it (glm-4-9b-hf; arXiv 2406.12793): Llama with gate and up in one linear and biases on q, k and v. mlx_lm turns
// the whole of each head, in neighbouring pairs, where Hugging Face turns half of it (partial_rotary_factor).
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec glm(const Config& config) {
  auto decoder = Decoder::read(config);
  config.settle("head_dim", decoder.head_dim);  // mlx_lm wants it to be there
  decoder.read_tie(config, true);
  decoder.qkv_bias = config.flag_or("attention_bias", false);
  decoder.fused_mlp = true;
  auto spec = decoder.build("glm", make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), true, nullptr, 0));
  spec.warnings.push_back(
      "mlx_lm 0.32.2 turns the whole of each head of this model, and so does lquant, whose output runs there; the model was trained with half of it "
      "turning");
  return spec;
}

}  // namespace lquant::model::family
