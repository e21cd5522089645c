// MiniCPM (arXiv 2404.06395) and MiniCPM 4 (arXiv 2506.07900): Llama with embeddings, branches and the head's input scaled by numbers of the
// config. A head that is tied to the embedding has a copy of it here: mlx_lm makes one whatever the config says, and opens no model that says it is
// tied.
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec minicpm(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  decoder.tied = false;
  if (config.flag_or("tie_word_embeddings", false)) config.settle("tie_word_embeddings", false);
  decoder.branch_scale = static_cast<float>(config.number("scale_depth") / std::sqrt(decoder.layers));
  const double scale_emb = config.number("scale_emb"), divisor = double(decoder.hidden) / config.count("dim_model_base");
  auto spec = decoder.build("minicpm", make_rope(decoder.head_dim, config.number_or("rope_theta", 1e6), config.flag_or("rope_traditional", false),
                                                 rope_scaling(config), config.count_or_none("max_position_embeddings")));
  spec.embedding_multiplier = static_cast<float>(scale_emb);
  spec.head_input_divisor = static_cast<float>(divisor);
  spec.imports.rows.push_back({decoder.names.head, {decoder.names.embedding}});
  return spec;
}

}  // namespace lquant::model::family
