// OLMoE (arXiv 2409.02060): a mixture in every layer; q and k are normed over all their heads together.
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec olmoe(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.qk_norm = true;
  auto mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "intermediate_size");
  mixture.bias = config.flag_or("mlp_bias", false);
  const bool normalize = config.flag_or("norm_topk_prob", false);
  Imports imports;
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false),
                              rope_scaling(config), config.count_or_none("max_position_embeddings"));
  auto spec = decoder.build("olmoe", rope, [&](Layer& layer) {
    layer.norm_over_all_heads();
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    mlp.router.normalize = normalize;
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  if (config.has("clip_qkv"))
    spec.warnings.push_back(
        "config.json: \"clip_qkv\" is not followed, as mlx_lm 0.32.2 does not; outputs run there, where queries, keys and values are not cut");
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
