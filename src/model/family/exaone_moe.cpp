// EXAONE's mixtures: norms over each head of q and k; layers with a window have rotary positions, the others see everything and have none, unless no
// layer has a window. "is_moe_layer" says which layers have experts, with a DeepSeek-V3 router.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// "is_moe_layer", settled where transformers 5 has "mlp_layer_types" instead.
std::vector<bool> routed_layers(const Config& config, int layers) {
  if (config.has("is_moe_layer") || !config.has("mlp_layer_types")) return config.flags("is_moe_layer", layers);
  std::vector<bool> routed;
  for (const auto& type : config.texts("mlp_layer_types", layers)) routed.push_back(type == "sparse");
  config.settle("is_moe_layer", routed);
  return routed;
}

}  // namespace

ModelSpec exaone_moe(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, false);
  decoder.qk_norm = true;
  const auto nested = rope_scaling(config, "rope_parameters");
  const double theta =
      nested.is_object() && nested.contains("rope_theta") ? Config(nested).number("rope_theta") : config.number_or("rope_theta", 1e6);
  const auto rope = make_rope(decoder.head_dim, theta, false, rope_scaling(config), config.count("max_position_embeddings"));
  const auto types = config.texts("layer_types", decoder.layers);
  const bool windows = std::find(types.begin(), types.end(), "sliding_attention") != types.end();
  const int window = config.count("sliding_window");

  const auto mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  require_noaux(config);
  const auto deepseek = config.filled({{"norm_topk_prob", true}, {"routed_scaling_factor", 2.5}});
  const auto routed = routed_layers(config, decoder.layers);
  const int shared = config.count_or_none("num_shared_experts", 0);
  Imports imports;
  auto spec = decoder.build("exaone_moe", rope, [&](Layer& layer) {
    if (types[layer.index] == "sliding_attention") {
      layer.attention.window = window;
    } else if (windows) {
      layer.attention.rope.reset();
    }
    if (!routed[layer.index]) return;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    mlp.router.linear.dense_why = kBareRouter;
    read_corrected_sigmoids(deepseek, layer.prefix + "mlp.gate.e_score_correction_bias", mlp.router);
    imports.rows.push_back({mlp.router.correction->path, {layer.prefix + "mlp.e_score_correction_bias"}});
    layer.mlp = std::make_shared<const Experts>(mlp);
    if (shared > 0) layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, mixture.width * shared));
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
