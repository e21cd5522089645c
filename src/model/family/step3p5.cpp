// Step 3.5: attention's result is weighed head by head; layers with a window have heads of other numbers, and each layer may have positions and
// limits of its own. Checkpoints of the original names have norms of 1 + w, mlx_lm's have the sum.
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// The entry of a layer, or the one number for all; `otherwise` where there is none.
double at_layer(const Config& config, const char* key, int layer, double otherwise) {
  auto value = config.value(key);
  if (value.is_array()) value = static_cast<std::size_t>(layer) < value.size() ? value[layer] : nlohmann::json();
  if (value.is_null()) return otherwise;
  if (!value.is_number())
    fail("model", "config.json: \"{}\" has {} for layer {}, not a number; {}", config.place(key), shown_json(value), layer, kMend);
  return value.get<double>();
}

/// Layers that have experts: "3,4,5"; all but the first where nothing is said.
std::set<int> routed_layers(const Config& config, int layers) {
  std::set<int> all;
  if (!config.truthy("moe_layers_enum", false)) {
    for (int i = 1; i < layers; ++i) all.insert(i);
    return all;
  }
  std::istringstream text(config.text("moe_layers_enum"));
  for (std::string entry; std::getline(text, entry, ',');) {
    int layer = 0;
    if (!(std::istringstream(entry) >> layer))
      fail("model", "config.json: \"moe_layers_enum\" is {}, not numbers between commas; {}", shown_json(config.value("moe_layers_enum")), kMend);
    all.insert(layer);
  }
  return all;
}

std::optional<kernels::ClampedGate> limited(double limit) {
  if (!(limit > 0)) return std::nullopt;
  return kernels::ClampedGate{.limit = static_cast<float>(limit), .limits_activated = true};
}

/// Rows for the original names of a layer with experts.
void original_names(const std::string& prefix, const Experts& mlp, Imports& imports) {
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    imports.rows.push_back({prefix + "mlp.switch_mlp." + name, {prefix + "moe." + name}});
    imports.rows.push_back({prefix + "mlp.share_expert." + name, {prefix + "share_expert." + name}});
  }
  imports.rows.push_back({mlp.router.linear.path, {prefix + "moe.gate"}});
  imports.rows.push_back({mlp.router.correction->path, {prefix + "moe.router_bias"}});
}

}  // namespace

ModelSpec step3p5(const Config& given) {
  const auto config = given.filled({{"rms_norm_eps", 1e-5},
                                    {"rope_theta", 10000.0},
                                    {"max_position_embeddings", 262144},
                                    {"moe_num_experts", 288},
                                    {"moe_top_k", 8},
                                    {"moe_intermediate_size", 1280},
                                    {"share_expert_dim", 1280}});
  auto global = Decoder::read(config, {.kv_heads = "num_attention_groups"});
  global.head_dim = config.count("head_dim");
  global.tied = false;
  global.qk_norm = true;
  auto local = global;
  if (config.truthy("attention_other_setting", false)) {
    const auto other = config.child("attention_other_setting");
    local.heads = other.count("num_attention_heads");
    local.kv_heads = other.count("num_attention_groups");
    if (local.heads % local.kv_heads != 0)
      fail("model", "config.json: \"{}\" {} is no multiple of \"{}\" {}", other.place("num_attention_heads"), local.heads,
           other.place("num_attention_groups"), local.kv_heads);
  }
  std::vector<std::string> types;  // of the layers that predict further tokens too
  if (config.has("layer_types")) types = config.texts("layer_types", 0);
  if (!types.empty() && static_cast<int>(types.size()) < global.layers)
    fail("model", "config.json: \"layer_types\" has {} entries where the model has {} layers", types.size(), global.layers);
  std::set<std::string> scaled_types;
  if (config.has("yarn_only_types"))
    for (const auto& type : config.texts("yarn_only_types", 0)) scaled_types.insert(type);
  const auto scaling = rope_scaling(config);
  const int window = config.count_or("sliding_window", 512);
  const bool gated = config.truthy("use_head_wise_attn_gate", true);
  const auto mixture = Mixture::read(config, "moe_num_experts", "moe_top_k", "moe_intermediate_size");
  const auto routed = routed_layers(config, global.layers);

  auto spec = global.outer("step3p5");
  std::string converted;  // a name that mlx_lm's files alone have
  for (int i = 0; i < global.layers; ++i) {
    const auto type = types.empty() ? "full_attention" : types[i];
    const bool slides = types.empty() ? i % 2 == 0 : type == "sliding_attention";
    const auto& own = slides ? local : global;
    const bool scaled = scaled_types.empty() || scaled_types.contains(type);
    const int rotated = static_cast<int>(own.head_dim * at_layer(config, "partial_rotary_factors", i, 1));
    auto layer = own.layer(
        i, make_rope(rotated, at_layer(config, "rope_theta", i, 0), false, scaled ? scaling : nullptr, config.count("max_position_embeddings")));
    if (slides) layer.attention.window = window;
    if (gated) layer.attention.gate = OutputGate{.linear = block_linear(i, layer.prefix + "self_attn.g_proj", Role::other, own.heads, own.hidden)};
    const auto limit = limited(at_layer(config, "swiglu_limits_shared", i, 0));
    if (routed.contains(i)) {
      auto mixed = mixture;
      mixed.singles.clear();
      auto mlp = experts_of(layer, own.hidden, mixed, "mlp.gate.gate", spec.imports);
      mlp.clamp = limited(at_layer(config, "swiglu_limits", i, 0));
      auto& router = mlp.router;
      router.linear.fixed_format = kRouterFormat;
      router.score = Router::Score::sigmoid;
      router.f32 = true;
      router.correction = correction_at(layer.prefix + "mlp.gate.router_bias", mixture.experts);
      router.normalize = config.flag_or("norm_expert_weight", true);
      router.epsilon = 1e-20f;
      router.factor = static_cast<float>(config.number_or("moe_router_scaling_factor", 3));
      original_names(layer.prefix, mlp, spec.imports);
      converted = router.correction->path;
      layer.mlp = std::make_shared<const Experts>(mlp);
      auto always = gated_mlp(layer, "mlp.share_expert.", own.hidden, config.count("share_expert_dim"));
      always.clamp = limit;
      layer.shared = std::make_shared<const GatedMlp>(always);
    } else {
      auto mlp = gated_mlp(layer, "mlp.", own.hidden, own.intermediate);
      mlp.clamp = limit;
      layer.mlp = std::make_shared<const GatedMlp>(mlp);
    }
    spec.blocks.push_back(layer.block());
  }
  if (!converted.empty()) {
    auto norms = spec.outer_norms();
    for (const auto& block : spec.blocks)
      for (const auto* norm : block.norms()) norms.push_back(norm);
    for (const auto* norm : norms) spec.imports.rows.push_back({norm->weight_name(), {norm->weight_name()}, {{Change::Kind::add_one}}, converted});
  }
  leave_out_layers(spec, global, std::max(config.count_or_none("num_nextn_predict_layers", 0), static_cast<int>(types.size()) - global.layers));
  return spec;
}

}  // namespace lquant::model::family
