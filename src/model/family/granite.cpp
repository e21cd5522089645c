// Granite 3: Llama with constants for muP (arXiv 2203.03466): factors of the embedding, of attention scores and of what each branch adds to the
// residual, and a divisor of the logits. mlx_lm quantizes o_proj, down_proj and the head to 8 bits: scales of its small float formats would not hold
// their weights.
#include "base/error.h"
#include "model/family/family.h"
#include "model/ops/gated_mlp.h"

namespace lquant::model::family {

ModelSpec granite(const Config& given) {
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  decoder.mlp_bias = config.flag("mlp_bias");
  decoder.branch_scale = static_cast<float>(config.number("residual_multiplier"));
  const auto score_scale = static_cast<float>(config.number("attention_multiplier"));
  const double divisor = config.number("logits_scaling");
  if (divisor == 0) fail("model", "config.json: \"logits_scaling\" is 0, and logits are divided by it; {}", kMend);
  const auto advise = [](LinearSpec& linear) {
    linear.fixed_format = codec::Format{codec::Mode::affine, 8, 64};
    linear.only_advised = true;
  };
  auto spec = decoder.build(
      "granite", make_rope(decoder.head_dim, config.number("rope_theta"), false, rope_scaling(config), config.count("max_position_embeddings")),
      [&](Layer& layer) {
        layer.attention.scale = score_scale;
        advise(layer.attention.output);
        auto mlp = dynamic_cast<const GatedMlp&>(*layer.mlp);
        advise(mlp.down);
        layer.mlp = std::make_shared<const GatedMlp>(mlp);
      });
  if (spec.head) advise(*spec.head);
  spec.embedding_multiplier = static_cast<float>(config.number("embedding_multiplier"));
  spec.logit_multiplier = static_cast<float>(1 / divisor);
  return spec;
}

}  // namespace lquant::model::family
