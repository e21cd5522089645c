// Klear (arXiv 2508.05451 has its kin): norms over each head of q and k; a token's experts and the one that all tokens meet are mixed by the softmax
// of two numbers of its own.

#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec klear(const Config& config) {
  const auto flat = with_flat_positions(config);
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.tied = false;
  decoder.qk_norm = true;
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  const auto rope = make_rope(decoder.head_dim, flat.number("rope_theta"), false, nullptr, 0);
  config.count("max_position_embeddings");  // of no use here, but mlx_lm opens no model without it

  const bool dense = config.count("num_experts", 0) == 0;
  const auto mixed = layers_with_experts(config);
  const bool normalize = config.flag("norm_topk_prob");
  const int shared = config.count("n_shared_experts");
  Mixture mixture;
  if (!dense) mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  mixture.stacks = "mlp.experts.";
  Imports imports;
  auto spec = decoder.build("Klear", rope, [&](Layer& layer) {
    if (dense || !mixed(layer.index)) return;
    auto routed = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    auto& router = routed.router;
    router.linear.fixed_format = kRouterFormat;
    router.score = Router::Score::sigmoid;
    router.f32 = router.rounded = true;
    router.correction = correction_at(layer.prefix + "mlp.expert_bias", mixture.experts);
    router.normalize = normalize;
    auto always = gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, mixture.width * shared);
    auto coefficient = block_linear(layer.index, layer.prefix + "mlp.coefficient", Role::other, 2, decoder.hidden, /*bias=*/true);
    routed.result_gate = always.result_gate = coefficient;
    always.result_row = 1;
    layer.mlp = std::make_shared<const Experts>(routed);
    layer.shared = std::make_shared<const GatedMlp>(always);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
