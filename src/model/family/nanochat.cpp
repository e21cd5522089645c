// nanochat: norms without weight, behind the embedding too and on each head of q and k once they have turned, which they do the other way round than
// elsewhere; an MLP of relu² without gate; logits within ±15. mlx_lm fixes what transformers' config.json says of eps and of that bound.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec nanochat(const Config& config) {
  const auto filled = config.filled({{"hidden_size", 1280},
                                     {"num_hidden_layers", 20},
                                     {"num_attention_heads", 10},
                                     {"num_key_value_heads", 10},
                                     {"vocab_size", 65536},
                                     {"intermediate_size", 5120},
                                     {"rms_norm_eps", 1e-5}});
  auto decoder = Decoder::read(filled, {.head_dim = nullptr});
  if (decoder.heads * decoder.head_dim != decoder.hidden)
    fail("model", "config.json: \"hidden_size\" {} is no multiple of \"num_attention_heads\" {}, and mlx_lm runs no such model", decoder.hidden,
         decoder.heads);
  decoder.eps = 1e-5f;
  decoder.norm_weight = false;
  decoder.tied = false;
  decoder.qk_norm = true;
  decoder.plain_mlp = true;
  decoder.activation = kernels::Activation::relu2;
  auto& names = decoder.names;
  names.embedding = "transformer.wte";
  names.layers = "transformer.h.";
  names.q = "attn.c_q";
  names.k = "attn.c_k";
  names.v = "attn.c_v";
  names.o = "attn.c_proj";
  names.up = "mlp.c_fc";
  names.down = "mlp.c_proj";

  auto rope = make_rope(decoder.head_dim, with_flat_positions(filled).number_or("rope_theta", 10000), false, nullptr, 0);
  for (auto& frequency : rope.inv_freq) frequency = -frequency;
  // transformers' names.
  Imports imports;
  imports.rows.push_back({names.embedding, {"model.embed_tokens"}});
  auto spec = decoder.build("nanochat", rope, [&](Layer& layer) {
    layer.attention.norms_behind_rope = true;
    const auto theirs = "model.layers." + std::to_string(layer.index) + ".";
    for (const auto& [ours, other] : {std::pair{names.q, "self_attn.q_proj"},
                                      {names.k, "self_attn.k_proj"},
                                      {names.v, "self_attn.v_proj"},
                                      {names.o, "self_attn.o_proj"},
                                      {names.up, "mlp.fc1"},
                                      {names.down, "mlp.fc2"}})
      imports.rows.push_back({layer.prefix + ours, {theirs + other}});
  });
  spec.logit_softcap = 15;
  spec.embedding_norm = decoder.norm_at("transformer.norm");
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
