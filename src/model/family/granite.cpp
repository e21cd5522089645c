// Granite 3: Llama with constants for muP (arXiv 2203.03466): factors of the embedding, of attention scores and of what each branch adds to the
// residual, and a divisor of the logits. mlx_lm quantizes o_proj, down_proj and the head to 8 bits: scales of its small float formats would not hold
// their weights. Its mixtures (granitemoe) have one in every layer, with a softmax in f32 over the experts that a token meets.
#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

void advise(LinearSpec& linear) {
  linear.fixed_format = codec::Format{codec::Mode::affine, 8, 64};
  linear.only_advised = true;
}

/// `mlp` puts the layer's own MLP in place.
ModelSpec granite_like(const Config& config, const std::string& family, bool mlp_bias, const std::function<void(Layer&, int)>& mlp) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  decoder.mlp_bias = mlp_bias;
  decoder.branch_scale = static_cast<float>(config.number("residual_multiplier"));
  const auto score_scale = static_cast<float>(config.number("attention_multiplier"));
  const double divisor = config.number("logits_scaling");
  if (divisor == 0) fail("model", "config.json: \"logits_scaling\" is 0, and logits are divided by it; {}", kMend);
  auto spec = decoder.build(
      family, make_rope(decoder.head_dim, config.number("rope_theta"), false, rope_scaling(config), config.count("max_position_embeddings")),
      [&](Layer& layer) {
        layer.attention.scale = score_scale;
        advise(layer.attention.output);
        mlp(layer, decoder.hidden);
      });
  if (spec.head) advise(*spec.head);
  spec.embedding_multiplier = static_cast<float>(config.number("embedding_multiplier"));
  spec.logit_multiplier = static_cast<float>(1 / divisor);
  return spec;
}

}  // namespace

ModelSpec granite(const Config& given) {
  const auto config = with_flat_positions(given);
  return granite_like(config, "granite", config.flag("mlp_bias"), [](Layer& layer, int) {
    auto mlp = dynamic_cast<const GatedMlp&>(*layer.mlp);
    advise(mlp.down);
    layer.mlp = std::make_shared<const GatedMlp>(mlp);
  });
}

ModelSpec granitemoe(const Config& given) {
  const auto config = with_flat_positions(given);
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  mixture.stacks = "block_sparse_moe.switch_mlp.";
  mixture.singles.clear();
  Imports imports;
  auto spec = granite_like(config, "granitemoe", false, [&](Layer& layer, int hidden) {
    auto mlp = experts_of(layer, hidden, mixture, "block_sparse_moe.router.layer", imports);
    advise(mlp.down);
    mlp.router.linear.fixed_format = kRouterFormat;
    mlp.router.score = Router::Score::softmax_chosen;
    mlp.router.f32 = true;
    const auto path = layer.prefix + "block_sparse_moe.";
    fused_experts(mlp, path + "input_linear.weight", path + "output_linear.weight", /*transposed=*/false, imports);
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
