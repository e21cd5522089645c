// OLMo 2 (arXiv 2501.00656), OLMo 3 and OLMo Hybrid: norms behind attention and MLP and none before, so that the linears read the residual itself; q
// and k are normed over all their heads together. OLMo 3 alternates layers with a window, whose positions are plain, with ones that see everything,
// whose positions may be scaled. OLMo Hybrid alternates attention with gated delta nets (arXiv 2412.06464), in whose layers norms stand before both
// halves.
#include <algorithm>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/delta_net.h"
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

/// transformers has no positions where there is no base; mlx_lm then takes one, but where it is null.
std::optional<RopeSpec> positions_of_hybrid(const Config& config, int head_dim) {
  const auto nested = config.value("rope_parameters");
  if (!nested.is_object()) {
    const bool none = !config.has("rope_theta") && (config.is_null("rope_theta") || config.is_null("rope_parameters"));
    if (none) config.settle("rope_theta", nullptr);
    return none ? std::nullopt : std::optional(make_rope(head_dim, config.number_or("rope_theta", 10000), false, nullptr, 0));
  }
  if (nested.contains("rope_type") && nested["rope_type"] != "default")
    fail("model", "config.json: \"rope_parameters\" scales the positions ({}), which mlx_lm does not in a model of this type",
         shown_json(nested["rope_type"]));
  const auto positions = config.child("rope_parameters");
  if (positions.is_null("rope_theta")) return std::nullopt;
  return make_rope(head_dim, positions.number_or("rope_theta", 10000), false, nullptr, 0);
}

GatedDelta delta_net(const Layer& layer, int hidden, const DeltaSizes& sizes, float eps, Imports& imports) {
  const auto path = layer.prefix + "linear_attn.";
  const auto linear = [&](const char* name, Role role, int out, int in) { return block_linear(layer.index, path + name, role, out, in); };
  auto net = sizes.op(path);
  net.inputs = {linear("q_proj", Role::q, sizes.keys(), hidden),          linear("k_proj", Role::k, sizes.keys(), hidden),
                linear("v_proj", Role::v, sizes.values(), hidden),        linear("g_proj", Role::other, sizes.values(), hidden),
                linear("b_proj", Role::other, sizes.value_heads, hidden), linear("a_proj", Role::other, sizes.value_heads, hidden)};
  for (const auto& [name, channels] : {std::pair{"q", sizes.keys()}, {"k", sizes.keys()}, {"v", sizes.values()}})
    net.taps.push_back(sizes.taps_of(path + name + "_conv1d.weight", channels, imports));
  net.norm = rms_norm_over(path + "o_norm", sizes.value_dim, eps);
  net.output = linear("o_proj", Role::o, hidden, sizes.values());
  return net;
}

}  // namespace

ModelSpec olmo_hybrid(const Config& config) {
  auto decoder = olmo(config);
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  decoder.read_tie(config, std::nullopt);
  config.count("max_position_embeddings");
  std::vector<std::string> types(decoder.layers, "linear_attention");
  for (int i = 3; i < decoder.layers; i += 4) types[i] = "full_attention";
  if (config.has("layer_types")) types = config.texts("layer_types", decoder.layers);
  const auto sizes = DeltaSizes::read(config);
  const bool doubled = config.flag("linear_allow_neg_eigval");
  const auto eps = static_cast<float>(config.number_or("layer_norm_epsilon", 1e-5));
  Imports imports;
  auto spec = decoder.build("olmo_hybrid", positions_of_hybrid(config, decoder.head_dim), [&](Layer& layer) {
    layer.norm_over_all_heads();
    // Names of the published files.
    for (const auto& [ours, theirs] : {std::pair{"input_layernorm", "attention_layer_norm"}, {"post_attention_layernorm", "feedforward_layer_norm"}})
      imports.rows.push_back({layer.prefix + ours, {layer.prefix + theirs}});
    if (types[layer.index] != "linear_attention") return;
    layer.attention_norm = decoder.norm_at(layer.prefix + "input_layernorm");
    layer.mlp_norm = decoder.norm_at(layer.prefix + "post_attention_layernorm");
    layer.attention_post_norm = layer.mlp_post_norm = std::nullopt;
    auto net = delta_net(layer, decoder.hidden, sizes, eps, imports);
    net.doubled = doubled;
    layer.mixer = std::make_shared<const GatedDelta>(net);
  });
  spec.imports = std::move(imports);
  return spec;
}

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
