// OLMo 2 (arXiv 2501.00656) and OLMo 3: norms behind attention and MLP and none before, so that the linears read the residual itself; q and k are
// normed over all their heads together. OLMo 3 alternates layers with a window, whose positions are plain, with ones that see everything, whose
// positions may be scaled.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

Decoder olmo(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.qk_norm = true;
  decoder.names.attention_norm.clear();
  decoder.names.attention_post_norm = "post_attention_layernorm";
  decoder.names.mlp_norm.clear();
  decoder.names.mlp_post_norm = "post_feedforward_layernorm";
  return decoder;
}

/// transformers 5 nests the positions of OLMo 3 by kind of layer; mlx_lm gives both kinds one base, and the scaling to the full ones.
Config with_one_base(const Config& config) {
  const auto nested = config.value("rope_parameters");
  if (config.has("rope_theta") || !nested.is_object() || !nested.contains("full_attention")) return config;
  const auto full = nested["full_attention"], sliding = nested.value("sliding_attention", full);
  if (!full.is_object() || !sliding.is_object() || full.value("rope_theta", nlohmann::json()) != sliding.value("rope_theta", nlohmann::json()))
    fail("model", "config.json: \"rope_parameters\" has not one \"rope_theta\" for full_attention and sliding_attention, and mlx_lm knows but one");
  if (sliding.contains("rope_type") && sliding["rope_type"] != "default")
    fail("model", "config.json: \"rope_parameters\" scales the positions of sliding_attention, which mlx_lm does not");
  nlohmann::json flat = {{"rope_parameters", full}};
  const Config only(flat);
  const auto positions = with_flat_positions(only);
  return config.with(positions.settled());
}

}  // namespace

ModelSpec olmo2(const Config& config) {
  auto decoder = olmo(config);
  decoder.read_tie(config, true);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  return decoder.build("olmo2",
                       make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false),
                                 rope_scaling(config), config.count_or_none("max_position_embeddings")),
                       [](Layer& layer) { layer.norm_over_all_heads(); });
}

ModelSpec olmo3(const Config& given) {
  const auto config = with_flat_positions(with_one_base(given));
  auto decoder = olmo(config);
  decoder.read_tie(config, false);
  std::vector<std::string> types(decoder.layers, "sliding_attention");
  for (int i = 3; i < decoder.layers; i += 4) types[i] = "full_attention";
  if (config.has("layer_types")) types = config.texts("layer_types", decoder.layers);
  for (const char* kind : {"sliding_attention", "full_attention"})
    if (std::find(types.begin(), types.end(), kind) == types.end())
      fail("model", "config.json: \"layer_types\" has no {}, and mlx_lm runs no OLMo 3 model without", kind);
  const int window = config.count("sliding_window"), positions = config.count("max_position_embeddings");
  const double theta = config.number("rope_theta");
  const auto plain = make_rope(decoder.head_dim, theta, false, nullptr, 0),
             scaled = make_rope(decoder.head_dim, theta, false, rope_scaling(config), positions);
  return decoder.build("olmo3", plain, [&](Layer& layer) {
    layer.norm_over_all_heads();
    if (types[layer.index] == "full_attention")
      layer.attention.rope = scaled;
    else
      layer.attention.window = window;
  });
}

}  // namespace lquant::model::family
