// GLM-4.5 and 4.6 (arXiv 2508.06471): dense layers first, then DeepSeek-V3's mixtures with experts that every token meets; a part of each head turns.
// Solar Open is the same with other defaults. Layers behind the last one predict several tokens at once.
#include "model/family/deepseek.h"

namespace lquant::model::family {
namespace {

ModelSpec glm_mixture(const Config& config, const std::string& family) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.tied = false;
  config.flag("tie_word_embeddings");  // of no use here, but mlx_lm opens no model without it
  config.count("max_position_embeddings");
  decoder.qkv_bias = config.flag("attention_bias");
  decoder.qk_norm = config.flag("use_qk_norm");
  require_noaux(config);
  const auto mixtures = Mixtures::demanded(config);
  Imports imports;
  const auto rope = make_rope(rotated_features(config, decoder.head_dim, std::nullopt), config.number("rope_theta"), false, nullptr, 0);
  auto spec = decoder.build(family, rope, [&](Layer& layer) {
    if (mixtures.at(layer.index)) mixtures.put(layer, decoder.hidden, imports);
  });
  spec.imports = std::move(imports);
  leave_out_layers(spec, decoder, 1);
  return spec;
}

}  // namespace

ModelSpec glm4_moe(const Config& given) {
  const auto config = with_flat_positions(given);
  // mlx_lm has no default for it, and does not read it.
  if (!config.has("rope_scaling") && !config.is_null("rope_scaling")) config.settle("rope_scaling", nullptr);
  return glm_mixture(config, "glm4_moe");
}

ModelSpec solar_open(const Config& given) {
  return glm_mixture(with_flat_positions(given).filled({{"attention_bias", false}, {"use_qk_norm", false}, {"n_group", 1}, {"topk_group", 1}}),
                     "solar_open");
}

}  // namespace lquant::model::family
