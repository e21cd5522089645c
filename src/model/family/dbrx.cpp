// DBRX: queries, keys and values in one linear, cut to a limit; a mixture in every layer, whose experts are linears of their own in mlx_lm.
#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec dbrx(const Config& config) {
  const auto attention = config.child("attn_config"), ffn = config.child("ffn_config");
  auto decoder = Decoder::read(
      config.filled({{"rms_norm_eps", 1e-5}}),
      {.hidden = "d_model", .layers = "n_layers", .intermediate = nullptr, .heads = "n_heads", .kv_heads = nullptr, .head_dim = nullptr});
  decoder.require_even_heads();
  decoder.eps = 1e-5f;
  decoder.kv_heads = attention.count("kv_n_heads");
  if (decoder.heads % decoder.kv_heads != 0)
    fail("model", "config.json: \"n_heads\" {} is no multiple of \"attn_config.kv_n_heads\" {}", decoder.heads, decoder.kv_heads);
  decoder.tied = false;
  decoder.norm = NormSpec::Kind::layer;
  decoder.fused_attention = Decoder::Fused::in_order;
  auto& names = decoder.names;
  names.embedding = "transformer.wte";
  names.final_norm = "transformer.norm_f";
  names.layers = "transformer.blocks.";
  names.attention_norm = "norm_attn_norm.norm_1";
  names.mlp_norm = "norm_attn_norm.norm_2";
  names.qkv = "norm_attn_norm.attn.Wqkv";
  names.o = "norm_attn_norm.attn.out_proj";
  // In Python true is the number 1, and there are such configs.
  const auto limit = attention.value("clip_qkv") == true ? 1 : static_cast<float>(attention.number("clip_qkv"));
  if (!(limit > 0)) fail("model", "config.json: \"attn_config.clip_qkv\" is not above 0; {}", kMend);
  auto mixture = Mixture::read(ffn, "moe_num_experts", "moe_top_k", "ffn_hidden_size");
  mixture.stacks = mixture.singles = "ffn.experts.";
  mixture.gate = "w1", mixture.up = "v1", mixture.down = "w2";
  mixture.apart = true;

  Imports imports;
  auto spec = decoder.build("dbrx", make_rope(decoder.head_dim, attention.number("rope_theta"), false, nullptr, 0), [&](Layer& layer) {
    layer.attention.limit = limit;
    auto experts = experts_of(layer, decoder.hidden, mixture, "ffn.router.layer", imports);
    experts.router.f32 = experts.router.normalize = experts.router.rounded = true;
    // Published files have all experts' rows in one matrix, those of w2 transposed.
    for (const auto* linear : {&*experts.gate, &experts.up, &experts.down}) {
      const auto name = linear->path.substr(linear->path.rfind('.'));
      Import row{linear->path + ".weight", {layer.prefix + "ffn.experts.mlp" + name}};
      row.changes = {{.kind = Change::Kind::reshape, .shape = {mixture.experts, mixture.width, decoder.hidden}}};
      if (name == ".w2") row.changes.push_back({Change::Kind::transpose});
      imports.rows.push_back(std::move(row));
    }
    layer.mlp = std::make_shared<const Experts>(experts);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
