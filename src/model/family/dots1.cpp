// dots.llm1 (arXiv 2506.05767): norms over each head of q and k, dense layers first, then DeepSeek-V3's mixtures.
#include "model/family/deepseek.h"

namespace lquant::model::family {

ModelSpec dots1(const Config& given) {
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.qk_norm = true;
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  if (!config.has("max_position_embeddings") && !config.is_null("max_position_embeddings")) config.settle("max_position_embeddings", nullptr);
  config.count("n_shared_experts");
  auto mixtures = Mixtures::demanded(config);
  mixtures.sizes.stacks = mixtures.sizes.singles;
  mixtures.shared_bias = decoder.mlp_bias;
  mixtures.router.correction->keeps_dtype = false;
  Imports imports;
  const auto rope =
      make_rope(decoder.head_dim, config.number("rope_theta"), false, rope_scaling(config), config.count_or_none("max_position_embeddings"));
  auto spec = decoder.build("dots1", rope, [&](Layer& layer) {
    if (mixtures.at(layer.index)) mixtures.put(layer, decoder.hidden, imports);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
