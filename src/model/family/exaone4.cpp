// EXAONE 4 (arXiv 2507.11407): no norm before attention and MLP but one behind each, norms over each head of q and k. "sliding_window_pattern" is a
// text that is repeated over the layers: L is a layer with a window and rotary positions, G one that sees everything and knows no positions.
// Without it every layer sees everything and has positions.
#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

/// The pattern, settled where mlx_lm knows no such spelling: transformers has every n-th layer as a number, or a list of the layers' types.
std::string pattern_of(const Config& config, int layers) {
  const auto value = config.value("sliding_window_pattern");
  if (config.is_null("sliding_window_pattern") || value == "") return "";
  std::string pattern;
  if (value.is_string()) {
    pattern = value.get<std::string>();
  } else {
    if (!config.has("sliding_window")) {
      config.settle("sliding_window", nullptr);
    } else if (config.has("layer_types")) {
      for (const auto& type : config.texts("layer_types", layers)) pattern += type == "sliding_attention" ? 'L' : 'G';
    } else {
      pattern = std::string(config.count_or("sliding_window_pattern", 4) - 1, 'L') + "G";
    }
    config.settle("sliding_window_pattern", pattern.empty() ? nlohmann::json() : nlohmann::json(pattern));
    if (pattern.empty()) return pattern;
  }
  for (const char kind : {'L', 'G'})
    if (pattern.find(kind) >= static_cast<std::size_t>(layers))  // npos is one of these
      fail("model", "config.json: sliding_window_pattern \"{}\" makes no layer {} of {}, and mlx_lm runs EXAONE 4 with both kinds or no pattern",
           shown(pattern), kind, layers);
  return pattern;
}

}  // namespace

ModelSpec exaone4(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, std::nullopt);
  decoder.names = Names::sandwich();
  decoder.names.attention_norm = decoder.names.mlp_norm = "";
  decoder.qk_norm = true;
  const auto pattern = pattern_of(config, decoder.layers);
  const auto flat = with_flat_positions(config);
  const auto scaling = rope_scaling(flat);
  if (scaling.is_null()) config.settle("rope_scaling", nullptr);  // mlx_lm wants these to be there
  if (!config.has("sliding_window")) config.settle("sliding_window", nullptr);
  const auto rope = make_rope(decoder.head_dim, flat.number("rope_theta"), false, scaling, config.count("max_position_embeddings"));
  return decoder.build("exaone4", rope, [&](Layer& layer) {
    if (pattern.empty()) return;
    if (pattern[layer.index % pattern.size()] == 'L') {
      layer.attention.window = config.count("sliding_window");
    } else {
      layer.attention.rope.reset();
    }
  });
}

}  // namespace lquant::model::family
