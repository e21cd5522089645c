// MiniCPM 3: MiniCPM (arXiv 2404.06395) with latent attention, whose values are as wide as the heads of the residual, and positions by LongRoPE
// whatever the config calls them. A head of its own reads its input divided; one that is tied does not.
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/latent.h"

namespace lquant::model::family {

ModelSpec minicpm3(const Config& given) {
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.require_even_heads();
  decoder.read_tie(config, false);
  decoder.branch_scale = static_cast<float>(config.number("scale_depth") / std::sqrt(decoder.layers));
  const double scale_emb = config.number("scale_emb"), divisor = double(decoder.hidden) / config.count("dim_model_base");

  const int longest = config.count("max_position_embeddings");
  if (!config.has("rope_scaling"))  // mlx_lm demands it; with these numbers it changes nothing
    config.settle("rope_scaling", {{"type", "longrope"}, {"short_factor", 1.0}, {"long_factor", 1.0}, {"original_max_position_embeddings", longest}});
  auto scaling = config.has("rope_scaling") ? rope_scaling(config) : config.settled().at("rope_scaling");
  scaling["type"] = "longrope";
  const nlohmann::json defaults{{"original_max_position_embeddings", 4096}, {"short_factor", 1.0}, {"long_factor", 1.0}};
  for (const auto& [key, otherwise] : defaults.items())
    if (!scaling.contains(key)) scaling[key] = otherwise;
  auto sizes = Latent::read(config, decoder, 0, decoder.hidden / decoder.heads);
  sizes.eps = 1e-5f;
  sizes.rope = make_rope(sizes.rotated, config.number_or("rope_theta", 1e6), false, scaling, longest);
  if (config.has("v_head_dim") && config.count("v_head_dim") != sizes.value)
    fail("model", "config.json: \"v_head_dim\" is {}, and mlx_lm has values of {} features in this model; {}", config.count("v_head_dim"),
         sizes.value, kMend);
  if (sizes.q_rank == 0) fail("model", "config.json: \"q_lora_rank\" is null, and mlx_lm runs no MiniCPM 3 without; {}", kMend);

  Imports imports;
  auto spec = decoder.build("minicpm3", std::nullopt,
                            [&](Layer& layer) { layer.mixer = std::make_shared<const LatentAttention>(latent_attention(layer, sizes, imports)); });
  spec.embedding_multiplier = static_cast<float>(scale_emb);
  if (!spec.tied()) spec.head_input_divisor = static_cast<float>(divisor);
  // A checkpoint without a head has the embedding for one.
  imports.rows.push_back({decoder.prefix + decoder.names.head, {decoder.prefix + decoder.names.embedding}});
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
