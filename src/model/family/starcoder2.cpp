// StarCoder 2 (arXiv 2402.19173): layer norms, a plain MLP, biases everywhere. mlx_lm gives all layers the whole context and takes the exact GELU.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec starcoder2(const Config& given) {
  const auto config = given.filled({{"vocab_size", 49152}, {"norm_epsilon", 1e-5}});
  auto decoder = Decoder::read(config, {.head_dim = nullptr, .eps = "norm_epsilon"});
  decoder.read_tie(config, true);
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = decoder.qkv_bias = decoder.o_bias = decoder.mlp_bias = true;
  decoder.plain_mlp = true;
  decoder.activation = kernels::Activation::gelu;
  decoder.names.up = "mlp.c_fc";
  decoder.names.down = "mlp.c_proj";
  return decoder.build("starcoder2", make_rope(decoder.head_dim, config.number_or("rope_theta", 1e5), false, nullptr, 0));
}

}  // namespace lquant::model::family
