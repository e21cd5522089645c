// StableLM 2 (arXiv 2402.17834): Llama with layer norms; a part of each head turns. The 12B norms each head of q and k with a weight of its own, a
// tensor each, and has attention and MLP side by side behind one norm.
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec stablelm(const Config& given) {
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config, {.head_dim = nullptr, .eps = "layer_norm_eps"});
  decoder.require_even_heads();
  decoder.tied = false;
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = true;
  decoder.qkv_bias = config.flag("use_qkv_bias");
  decoder.parallel = config.flag_or("use_parallel_residual", false);
  if (decoder.parallel) decoder.names.mlp_norm.clear();
  decoder.qk_norm = config.flag_or("qk_layernorm", false);
  decoder.names.q_norm = "self_attn.q_layernorm";
  decoder.names.k_norm = "self_attn.k_layernorm";
  const int turning = rotated_features(config, decoder.head_dim, std::nullopt);
  return decoder.build("stablelm", make_rope(turning, config.number("rope_theta"), false, nullptr, 0), [&](Layer& layer) {
    auto& attention = layer.attention;
    attention.wide = true;
    if (!decoder.qk_norm) return;
    attention.q_norm->pieces = attention.heads;
    attention.k_norm->pieces = attention.kv_heads;
    attention.q_norm->bias = attention.k_norm->bias = false;
  });
}

}  // namespace lquant::model::family
