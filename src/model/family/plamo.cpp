// PLaMo: attention and MLP read one norm and are added together. Query head i reads key and value head i mod (their number).
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec plamo(const Config& config) {
  auto decoder = Decoder::read(config, {.kv_heads = nullptr, .head_dim = nullptr});
  const int shared = config.count_or("n_shared_head", 8);
  if (decoder.heads % shared != 0)
    fail("model", "config.json: \"num_attention_heads\" {} is no multiple of \"n_shared_head\" {}, and mlx_lm runs no such model", decoder.heads,
         shared);
  decoder.kv_heads = decoder.heads / shared;
  decoder.names.layers = "model.layers.layers.";
  decoder.names.attention_norm = "norm";
  decoder.names.mlp_norm = "";
  decoder.tied = false;
  decoder.parallel = true;
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false), nullptr, 0);
  return decoder.build("plamo", rope, [](Layer& layer) { layer.attention.tiled = true; });
}

}  // namespace lquant::model::family
