// GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): q, k and v in one linear, head by head; a part of each head turns; attention and a plain
// MLP side by side behind layer norms of their own, or one after the other. mlx_lm takes the tanh form of GELU and an MLP of four times the width.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec gpt_neox(const Config& given) {
  const auto config = with_flat_positions(given, "rotary_emb_base", "rotary_pct");
  auto decoder = Decoder::read(config, {.intermediate = nullptr, .kv_heads = nullptr, .head_dim = nullptr, .eps = "layer_norm_eps"});
  decoder.require_even_heads();
  config.count("max_position_embeddings");  // of no use here, but mlx_lm opens no model without it
  decoder.intermediate = 4 * decoder.hidden;
  decoder.tied = false;
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = decoder.qkv_bias = decoder.o_bias = decoder.mlp_bias = true;
  decoder.parallel = config.flag_or("use_parallel_residual", true);
  decoder.plain_mlp = true;
  decoder.activation = kernels::Activation::gelu_tanh;
  decoder.fused_attention = Decoder::Fused::by_group;
  auto& names = decoder.names;
  names.embedding = "model.embed_in";
  names.final_norm = "model.final_layer_norm";
  names.head = "model.embed_out";
  names.layers = "model.h.";
  names.qkv = "attention.query_key_value";
  names.o = "attention.dense";
  names.up = "mlp.dense_h_to_4h";
  names.down = "mlp.dense_4h_to_h";
  const int turning = rotated_features(config, decoder.head_dim, std::nullopt, "rotary_pct");
  auto spec = decoder.build("gpt_neox", make_rope(turning, config.number("rotary_emb_base"), false, nullptr, 0));
  spec.imports.renames = {{"model.h.", "gpt_neox.layers."}, {"model.embed_out", "embed_out"}, {"model.", "gpt_neox."}};
  spec.left_out.push_back({"*.attention.bias", "causal masks"});
  spec.left_out.push_back({"*.attention.masked_bias", "causal masks"});
  return spec;
}

}  // namespace lquant::model::family
