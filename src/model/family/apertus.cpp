// Apertus (arXiv 2509.14233): norms over each head of q and k, and an MLP without a gate whose activation, xIELU (arXiv 2411.13010), is trained: its
// four numbers are in the checkpoint. mlx_lm demands some fields that it does not look at, and that transformers 5 does not write.
#include "model/family/family.h"
#include "model/ops/plain_mlp.h"

namespace lquant::model::family {

ModelSpec apertus(const Config& config) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.read_tie(config, std::nullopt);
  decoder.qk_norm = decoder.plain_mlp = true;
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  decoder.names.attention_norm = "attention_layernorm";
  decoder.names.mlp_norm = "feedforward_layernorm";
  for (const auto& [key, value] : {std::pair{"attention_bias", false}, {"mlp_bias", false}, {"post_norm", false}, {"qk_norm", true}})
    if (!config.has(key)) config.settle(key, value);
  const auto flat = with_flat_positions(config);
  const auto rope = make_rope(decoder.head_dim, flat.number("rope_theta"), flat.flag_or("rope_traditional", false), rope_scaling(flat),
                              flat.count("max_position_embeddings"));
  Imports imports;
  auto spec = decoder.build("apertus", rope, [&](Layer& layer) {
    auto mlp = dynamic_cast<const PlainMlp&>(*layer.mlp);
    const auto number = [&](const char* name) { return ParameterSpec{layer.prefix + "mlp.act_fn." + name, {}}; };
    mlp.xielu = Xielu{number("alpha_p"), number("alpha_n"), number("beta"), number("eps")};
    for (const auto* alpha : {&mlp.xielu->alpha_p, &mlp.xielu->alpha_n})  // [1] in the original files
      imports.rows.push_back({alpha->path, {alpha->path}, {{.kind = Change::Kind::squeeze}}});
    layer.mlp = std::make_shared<const PlainMlp>(mlp);
  });
  spec.imports = imports;
  return spec;
}

}  // namespace lquant::model::family
