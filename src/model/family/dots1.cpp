// dots.llm1 (arXiv 2506.05767): norms over each head of q and k, dense layers first, then DeepSeek-V3's mixtures.
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec dots1(const Config& given) {
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.qk_norm = true;
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  if (!config.has("max_position_embeddings") && !config.is_null("max_position_embeddings")) config.settle("max_position_embeddings", nullptr);
  auto mixture = Mixture::read(config, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  mixture.stacks = mixture.singles;
  const int dense = config.count("first_k_dense_replace", 0), shared = config.count("n_shared_experts");
  Imports imports;
  const auto rope =
      make_rope(decoder.head_dim, config.number("rope_theta"), false, rope_scaling(config), config.count_or_none("max_position_embeddings"));
  auto spec = decoder.build("dots1", rope, [&](Layer& layer) {
    if (layer.index < dense) return;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    mlp.router.linear.dense_why = kBareRouter;
    read_corrected_sigmoids(config, layer.prefix + "mlp.gate.e_score_correction_bias", mlp.router);
    mlp.router.correction->keeps_dtype = false;
    layer.mlp = std::make_shared<const Experts>(mlp);
    layer.shared =
        std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, shared * mixture.width, decoder.mlp_bias));
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
