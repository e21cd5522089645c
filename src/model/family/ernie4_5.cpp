// ERNIE 4.5's dense models: Llama with one flag for all biases; neighbouring features turn together.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec ernie4_5(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, std::nullopt);
  decoder.qkv_bias = decoder.o_bias = decoder.mlp_bias = config.flag("use_bias");
  config.settle("head_dim", decoder.head_dim);  // mlx_lm wants it to be there
  return decoder.build("ernie4_5", make_rope(decoder.head_dim, with_flat_positions(config).number("rope_theta"), true, nullptr,
                                             config.count("max_position_embeddings")));
}

}  // namespace lquant::model::family
