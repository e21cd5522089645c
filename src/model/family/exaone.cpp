// EXAONE 3 and 3.5 (arXiv 2408.03541, 2412.04862): Llama under names like GPT-2's.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec exaone(const Config& config) {
  auto decoder = Decoder::read(config, {.layers = "num_layers", .eps = "layer_norm_epsilon"});
  // mlx_lm brings what attention gives into the shape of the residual before the closing product.
  if (decoder.heads * decoder.head_dim != decoder.hidden)
    fail("model", "config.json: {} heads of {} features are not \"hidden_size\" {}, and mlx_lm runs no EXAONE model of such sizes", decoder.heads,
         decoder.head_dim, decoder.hidden);
  auto& names = decoder.names;
  names.embedding = "transformer.wte";
  names.final_norm = "transformer.ln_f";
  names.layers = "transformer.h.";
  names.attention_norm = "ln_1";
  names.mlp_norm = "ln_2";
  names.q = "attn.attention.q_proj";
  names.k = "attn.attention.k_proj";
  names.v = "attn.attention.v_proj";
  names.o = "attn.attention.out_proj";
  names.gate = "mlp.c_fc_0";
  names.up = "mlp.c_fc_1";
  names.down = "mlp.c_proj";
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  const auto flat = with_flat_positions(config);
  auto spec = decoder.build("exaone", make_rope(decoder.head_dim, flat.number("rope_theta"), config.flag_or("rope_traditional", false), rope_scaling(flat),
                                                config.count_or_none("max_position_embeddings")));
  spec.left_out.push_back({"*.rotary.inv_freq", "rotary tables, which follow from config.json"});
  return spec;
}

}  // namespace lquant::model::family
