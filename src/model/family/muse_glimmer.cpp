// Muse Glimmer: a norm without weight behind the embedding, norms of 1 + w before and behind attention and MLP; weightless norms on q and k; each
// feature of attention's result is weighed by a sigmoid of its own; positions in the layers with a window alone. Its checkpoints have a vision tower,
// its config.json the text model's fields at the top or in text_config.
#include <cmath>

#include "model/family/family.h"

namespace lquant::model::family {
namespace {

Config text_of_muse(const Config& config) {
  const nlohmann::json defaults = {{"hidden_size", 6656},      {"num_hidden_layers", 52}, {"intermediate_size", 19968}, {"num_attention_heads", 32},
                                   {"num_key_value_heads", 2}, {"head_dim", 128},         {"vocab_size", 202048},       {"rms_norm_eps", 1e-5},
                                   {"rope_theta", 500000.0},   {"sliding_window", 2048}};
  if (!config.has("text_config")) return config.filled(defaults);
  auto otherwise = nlohmann::json::object();
  if (config.has("tie_word_embeddings")) otherwise["tie_word_embeddings"] = config.value("tie_word_embeddings");
  return config.child("text_config", nlohmann::json::object(), otherwise).filled(defaults);
}

std::vector<std::string> types_of(const Config& config, int layers) {
  if (config.has("layer_types")) return config.texts("layer_types", layers);
  std::vector<std::string> types;
  for (int i = 0; i < layers; ++i) types.push_back(i % 4 == 3 ? "full_attention" : "sliding_attention");
  return types;
}

}  // namespace

ModelSpec muse_glimmer(const Config& given) {
  const auto config = text_of_muse(given);
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.names = Names::sandwich();
  decoder.norm_offset = 1;
  decoder.scale = static_cast<float>(config.number_or("qk_scale_factor", 3.87)) / std::sqrt(static_cast<float>(decoder.head_dim));
  const auto nested = rope_scaling(config, "rope_parameters");
  const double theta = nested.is_object() && nested.contains("rope_theta") ? Config(nested).number("rope_theta") : config.number("rope_theta");
  const auto rope = make_rope(decoder.head_dim, theta, false, nullptr, 0);
  const auto types = types_of(config, decoder.layers);
  std::vector<double> bases;
  if (config.has("layer_rope_theta")) bases = config.numbers("layer_rope_theta", decoder.layers);
  const auto post_eps = static_cast<float>(config.number_or("post_norm_eps", 1e-8));

  auto spec = decoder.build("muse_glimmer", rope, [&](Layer& layer) {
    const int i = layer.index;
    auto& attention = layer.attention;
    layer.attention_post_norm->eps = layer.mlp_post_norm->eps = post_eps;
    attention.q_norm = attention.k_norm = rms_norm_over("", decoder.head_dim, decoder.eps, /*weight=*/false);
    attention.gate =
        OutputGate{.linear = block_linear(i, layer.prefix + "self_attn.gate_proj", Role::other, decoder.heads * decoder.head_dim, decoder.hidden)};
    if (types[i] == "sliding_attention") attention.window = config.count("sliding_window");
    // A base tells whether there are positions, and not how fast they turn: mlx_lm has one base for all.
    if (bases.empty() ? types[i] == "full_attention" : bases[i] == 0) attention.rope.reset();
  });
  spec.embedding_norm = rms_norm_over("", decoder.hidden, decoder.eps, /*weight=*/false);
  spec.final_norm.offset = 0;
  spec.logit_multiplier = static_cast<float>(config.number_or("output_multiplier", 0.19611613513818404));
  spec.logit_softcap = static_cast<float>(config.number_or("final_logit_softcapping", 20));
  if (given.has("text_config")) spec.text_config = "text_config";
  spec.imports.renames = {{"model.", "language_model.model."}, {"lm_head.", "language_model.lm_head."}, {"model.", "model.language_model."}};
  for (const auto& [name, what] :
       {std::pair{"vision_tower", "the vision tower"}, {"vision_adapter", "the projector"}, {"vision_projection", "the projector"}}) {
    const std::string own(name);
    spec.imports.kept.push_back({own + ".*", what});
    spec.imports.kept.push_back({"model." + own + ".*", what, "model." + own, own});
  }
  return spec;
}

}  // namespace lquant::model::family
