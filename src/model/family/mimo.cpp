// MiMo (arXiv 2505.07608): Qwen 2's blocks, and layers that predict several tokens at once, which mlx_lm does not run.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec mimo(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  decoder.read_tie(config, false);
  decoder.qkv_bias = true;
  auto spec = decoder.build("mimo", make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false),
                                              rope_scaling(config), config.count_or("max_position_embeddings", 32768)));
  spec.left_out.push_back({"model.mtp_layers.*", kNotRun});
  return spec;
}

}  // namespace lquant::model::family
