// Phi-1 to Phi-2 (arXiv 2306.11644, 2309.05463): attention and a plain MLP side by side behind one layer norm, biases everywhere, the head's too; a
// part of each head turns.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec phi(const Config& given) {
  const auto config = given.filled({{"hidden_size", 2560},
                                    {"num_hidden_layers", 32},
                                    {"intermediate_size", 10240},
                                    {"num_attention_heads", 32},
                                    {"vocab_size", 51200},
                                    {"layer_norm_eps", 1e-5}});
  auto decoder = Decoder::read(config, {.head_dim = nullptr, .eps = "layer_norm_eps"});
  decoder.require_even_heads();
  if (config.flag_or("qk_layernorm", false))
    fail("model", "config.json: \"qk_layernorm\" is true, and mlx_lm runs no Phi model with norms of q and k");
  decoder.tied = false;
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = decoder.qkv_bias = decoder.o_bias = decoder.mlp_bias = decoder.head_bias = true;
  decoder.parallel = decoder.plain_mlp = true;
  decoder.activation = kernels::Activation::gelu_tanh;
  decoder.names.final_norm = "model.final_layernorm";
  decoder.names.mlp_norm.clear();
  decoder.names.o = "self_attn.dense";
  decoder.names.up = "mlp.fc1";
  decoder.names.down = "mlp.fc2";
  const int turning = rotated_features(config, decoder.head_dim, 0.4);
  return decoder.build("phi", make_rope(turning, config.number_or("rope_theta", 10000), false, nullptr, 0),
                       [](Layer& layer) { layer.attention.wide = true; });
}

}  // namespace lquant::model::family
