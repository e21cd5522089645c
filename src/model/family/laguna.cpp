// Laguna: heads by layer, norms over each head of q and k, attention's result weighed head by head with a softplus, rotary positions by kind of
// layer; experts behind a router whose logits may be bounded.
#include <algorithm>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// "rope_parameters" has those of each kind of layer.
RopeSpec rope_of(const Config& config, const std::string& type, int head_dim) {
  nlohmann::json own = nlohmann::json::object();
  if (config.has("rope_parameters")) {
    const auto all = config.child("rope_parameters");
    if (const auto found = rope_scaling(all, type.c_str()); found.is_object()) own = found;
  }
  const Config fields(own);
  const double theta = fields.number_or("rope_theta", 10000);
  const int rotated = fields.has("partial_rotary_factor") ? rotated_features(fields, head_dim, 1.0) : rotated_features(config, head_dim, 1.0);
  own.erase("rope_theta");
  if (!own.contains("rope_type") && !own.contains("type")) own["rope_type"] = "default";
  return make_rope(rotated, theta, false, own, config.count("max_position_embeddings"));
}

Router::Score score_of(const Config& config) {
  const auto name = config.has("moe_router_score_func") ? config.text("moe_router_score_func") : "sigmoid";
  if (name == "sigmoid") return Router::Score::sigmoid;
  if (name == "sqrtsoftplus") return Router::Score::sqrt_softplus;
  fail("model", "config.json: \"moe_router_score_func\" is {}, and mlx_lm knows \"sigmoid\" and \"sqrtsoftplus\" here", shown(name));
}

}  // namespace

ModelSpec laguna(const Config& given) {
  const auto config = given.filled({{"vocab_size", 100352},
                                    {"hidden_size", 2048},
                                    {"intermediate_size", 8192},
                                    {"num_hidden_layers", 40},
                                    {"num_attention_heads", 48},
                                    {"num_key_value_heads", 8},
                                    {"head_dim", 128},
                                    {"max_position_embeddings", 262144},
                                    {"rms_norm_eps", 1e-6},
                                    {"sliding_window", 512},
                                    {"num_experts", 256},
                                    {"num_experts_per_tok", 8},
                                    {"moe_intermediate_size", 512},
                                    {"shared_expert_intermediate_size", 512}});
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.qk_norm = true;
  decoder.qkv_bias = config.flag_or("qkv_bias", false);
  decoder.o_bias = config.flag_or("attention_bias", false);
  const int layers = decoder.layers;
  const auto types = config.has("layer_types") ? config.texts("layer_types", layers) : std::vector<std::string>(layers, "full_attention");
  if (std::find(types.begin(), types.end(), "full_attention") == types.end())
    fail("model", "config.json: \"layer_types\" names no layer of full_attention, without which mlx_lm does not run a Laguna");
  auto kinds = std::vector<std::string>(layers, "sparse");
  kinds[0] = "dense";
  if (config.has("mlp_layer_types")) kinds = config.texts("mlp_layer_types", layers);
  auto heads = std::vector<int>(layers, decoder.heads);
  if (config.has("num_attention_heads_per_layer")) heads = config.counts("num_attention_heads_per_layer", layers);
  const auto mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  const auto score = score_of(config);
  const bool gated = config.truthy("gating", true);
  if (config.value("gating") == "per-element")
    fail("model", "config.json: \"gating\" is \"per-element\", and mlx_lm runs a Laguna with gates by head alone; give a model of such gates");

  auto spec = decoder.outer("laguna");
  for (int i = 0; i < layers; ++i) {
    if (heads[i] < 1 || heads[i] % decoder.kv_heads != 0)
      fail("model", "config.json: \"num_attention_heads_per_layer\" has {} for layer {}, no multiple of \"num_key_value_heads\" {}", heads[i], i,
           decoder.kv_heads);
    decoder.heads = heads[i];
    auto layer = decoder.layer(i, rope_of(config, types[i], decoder.head_dim));
    if (types[i] == "sliding_attention") layer.attention.window = config.count("sliding_window");
    if (gated)
      layer.attention.gate = OutputGate{.activation = OutputGate::Activation::softplus,
                                        .linear = block_linear(i, layer.prefix + "self_attn.g_proj", Role::other, heads[i], decoder.hidden)};
    if (kinds[i] == "sparse") {
      auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate.proj", spec.imports);
      auto& router = mlp.router;
      router.linear.fixed_format = kRouterFormat;
      router.f32 = true;
      router.score = score;
      router.softcap = static_cast<float>(config.number_or("moe_router_logit_softcapping", 0));
      router.correction = correction_at(layer.prefix + "mlp.gate.e_score_correction_bias", mixture.experts);
      router.normalize = true;
      router.factor = static_cast<float>(config.number_or("moe_routed_scaling_factor", 1));
      spec.imports.rows.push_back({router.linear.path, {layer.prefix + "mlp.gate"}});
      spec.imports.rows.push_back({router.correction->path, {layer.prefix + "mlp.experts.e_score_correction_bias"}});
      layer.mlp = std::make_shared<const Experts>(mlp);
      const int width = config.count("shared_expert_intermediate_size");
      layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_expert.", decoder.hidden, width));
    }
    spec.blocks.push_back(layer.block());
  }
  spec.imports.renames = {{"model.", "language_model.model."}, {"lm_head.", "language_model.lm_head."}};
  return spec;
}

}  // namespace lquant::model::family
