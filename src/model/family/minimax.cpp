// MiniMax-M2: norms over all heads of q and of k, a part of each head turns; in every layer a mixture whose router works in f32, with DeepSeek-V3's
// corrected sigmoids. MiniMax-Text-01 shares the name of its type and nothing else.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// Layers of lightning attention, and factors of both residuals.
bool is_text_01(const Config& config) {
  if (config.has("full_attn_alpha_factor") || config.has("linear_attn_alpha_factor")) return true;
  if (const auto kinds = config.value("layer_types"); kinds.is_array() && std::find(kinds.begin(), kinds.end(), "linear_attention") != kinds.end())
    return true;
  const auto kinds = config.value("attn_type_list");  // 0: lightning, 1: softmax
  return kinds.is_array() && std::find(kinds.begin(), kinds.end(), 0) != kinds.end();
}

/// transformers 5 nests the share of a head that turns.
Config with_turning_features(const Config& given) {
  const auto config = with_flat_positions(given);
  if (config.has("rotary_dim")) return config;
  const int head_dim = config.has("head_dim") ? config.count("head_dim") : config.count("hidden_size") / config.count("num_attention_heads");
  return config.with({{"rotary_dim", rotated_features(config, head_dim, 1.0)}});
}

}  // namespace

ModelSpec minimax(const Config& given) {
  if (is_text_01(given))
    fail("model",
         "config.json: this is MiniMax-Text-01, with lightning attention in most layers; mlx_lm runs models of this type as MiniMax-M2, which has "
         "none, "
         "and so neither runs the other's; give a MiniMax-M2 model");
  const auto config = with_turning_features(given);
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.qk_norm = config.flag_or("use_qk_norm", true);
  config.count("max_position_embeddings");                                                    // of no use here, but mlx_lm opens no model without it
  if (!config.has("shared_intermediate_size")) config.settle("shared_intermediate_size", 0);  // nor without this
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  mixture.name_as_mixtral();
  Imports imports;
  auto spec = decoder.build("minimax", make_rope(config.count("rotary_dim"), config.number("rope_theta"), false, nullptr, 0), [&](Layer& layer) {
    layer.norm_over_all_heads();
    auto mlp = experts_of(layer, decoder.hidden, mixture, "block_sparse_moe.gate", imports);
    auto& router = mlp.router;
    router.linear.fixed_format = kRouterFormat;
    router.score = Router::Score::sigmoid;
    router.f32_product = router.f32 = router.rounded = true;
    router.correction = ParameterSpec{layer.prefix + "block_sparse_moe.e_score_correction_bias", {mixture.experts}, /*keeps_dtype=*/true};
    router.normalize = true;
    router.epsilon = 1e-20f;
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
