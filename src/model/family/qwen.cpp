// The first Qwen (arXiv 2309.16609): Llama under names of its own, q, k and v in one linear that alone always has a bias, as many key heads as heads.
// intermediate_size counts gate and up together, and w2 is the gate.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec qwen(const Config& config) {
  // mlx_lm takes the 1.8B model's value for what is not there.
  const auto filled = config.filled({{"hidden_size", 2048},
                                     {"num_attention_heads", 16},
                                     {"num_hidden_layers", 24},
                                     {"layer_norm_epsilon", 1e-6},
                                     {"vocab_size", 151936},
                                     {"intermediate_size", 11008},
                                     {"kv_channels", 128}});
  auto decoder = Decoder::read(filled, {.kv_heads = nullptr, .head_dim = nullptr, .eps = "layer_norm_epsilon"});
  decoder.intermediate /= 2;
  if (decoder.intermediate == 0) fail("model", "config.json: \"intermediate_size\" is 1, of which gate and up have half each; {}", kMend);
  // What attention gives is read as hidden_size numbers, and its heads turn as if they had hidden_size / heads features.
  const int channels = filled.count("kv_channels");
  if (std::int64_t{1} * channels * decoder.heads != decoder.hidden)
    fail("model", "config.json: {} heads of \"kv_channels\" {} are not \"hidden_size\" {}, and mlx_lm runs no Qwen model of such sizes",
         decoder.heads, channels, decoder.hidden);
  auto& names = decoder.names;
  names.embedding = "transformer.wte";
  names.final_norm = "transformer.ln_f";
  names.layers = "transformer.h.";
  names.attention_norm = "ln_1";
  names.mlp_norm = "ln_2";
  names.qkv = "attn.c_attn";
  names.o = "attn.c_proj";
  names.gate = "mlp.w2";
  names.up = "mlp.w1";
  names.down = "mlp.c_proj";
  decoder.tied = false;
  decoder.fused_attention = Decoder::Fused::in_order;
  decoder.qkv_bias = true;
  decoder.o_bias = decoder.mlp_bias = decoder.head_bias = !config.flag_or("no_bias", true);
  return decoder.build("qwen", make_rope(decoder.head_dim, 10000, false, nullptr, 0));
}

}  // namespace lquant::model::family
