// Gemma 4's text models (type gemma4_text): Gemma 3's blocks with weights as they are, norms on keys, queries and values, sizes that differ between
// local and global layers, keys and values that later layers share, inputs that each layer has of its own, and a scalar on what leaves a block. A
// mixture of experts stands beside the MLP in some: its router reads the residual through a norm of its own.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/per_layer.h"

namespace lquant::model::family {
namespace {

/// What one kind of layers has: "sliding_attention" or "full_attention".
struct Kind {
  int head_dim = 0, kv_heads = 0;
  bool values_from_keys = false;
  RopeSpec rope = {};
};

/// The block of "rope_parameters" of this kind, with mlx_lm's defaults.
RopeSpec rope_of(const Config& config, const std::string& kind, int head_dim) {
  nlohmann::json parameters = nlohmann::json::object();
  if (const auto all = config.value("rope_parameters"); all.is_object()) {
    if (all.contains(kind) && all.at(kind).is_object()) parameters = all.at(kind);
  } else if (kind == "full_attention") {
    parameters = {{"partial_rotary_factor", 0.25}, {"rope_theta", 1e6}, {"rope_type", "proportional"}};
  } else {
    parameters = {{"rope_theta", 1e4}, {"rope_type", "default"}};
  }
  return make_rope(head_dim, Config(parameters).number_or("rope_theta", 1e4), config.flag_or("rope_traditional", false), parameters,
                   config.count_or("max_position_embeddings", 131072));
}

std::vector<std::string> kinds_of(const Config& config, int layers) {
  if (config.has("layer_types")) return config.texts("layer_types", layers);
  const int pattern = config.count_or("sliding_window_pattern", 5);
  std::vector<std::string> kinds;
  for (int i = 0; i < layers; ++i) kinds.push_back((i + 1) % pattern == 0 ? "full_attention" : "sliding_attention");
  return kinds;
}

/// transformers 5 writes the sizes of global layers by their numbers; mlx_lm reads them as "global_head_dim" and "num_global_key_value_heads".
void settle_layers(const Config& config, const std::vector<std::string>& kinds) {
  const auto layers = config.value("per_layer_config");
  if (!layers.is_object()) return;
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    const auto key = std::to_string(i);
    if (kinds[i] != "full_attention" || !layers.contains(key) || !layers.at(key).is_object()) continue;
    const Config layer(layers.at(key));
    if (layer.has("head_dim")) config.settle("global_head_dim", layer.count("head_dim"));
    if (layer.has("num_key_value_heads")) config.settle("num_global_key_value_heads", layer.count("num_key_value_heads"));
  }
}

/// 0: layers have no inputs of their own. To Python null is the same.
int layer_input_size(const Config& config) {
  const char* key = "hidden_size_per_layer_input";
  if (!config.is_null(key)) return config.count_or(key, 256, 0);
  config.settle(key, 0);
  return 0;
}

/// None in a dense model.
std::optional<Mixture> mixture_of(const Config& config) {
  if (!config.flag_or("enable_moe_block", false)) return std::nullopt;
  auto mixture = Mixture::read(config, "num_experts", "top_k_experts", "moe_intermediate_size");
  mixture.stacks = "experts.switch_glu.";
  mixture.singles = "";
  return mixture;
}

/// The MLP and, beside it, experts, each between norms of its own, and a norm on their sum.
Step mixed_step(const Decoder& decoder, const Layer& layer, const Mixture& mixture, Imports& imports) {
  auto op = experts_of(layer, decoder.hidden, mixture, "router.proj", imports);
  op.activation = decoder.activation;
  op.router.linear.fixed_format = kRouterFormat;
  op.router.score = Router::Score::softmax_chosen;
  op.router.expert_factors = ParameterSpec{layer.prefix + "router.per_expert_scale", {mixture.experts}};
  op.router_norm = decoder.norm_at(layer.prefix + "router.scale");
  op.router_norm->suffix = "";
  op.router_norm->factor = 1 / std::sqrt(static_cast<float>(decoder.hidden));
  fused_experts(op, layer.prefix + "experts.gate_up_proj", layer.prefix + "experts.down_proj", false, imports);
  const auto norm = [&](const char* name) { return decoder.norm_at(layer.prefix + name); };
  return {.branches = {{.before = layer.mlp_norm, .op = layer.mlp, .after = norm("post_feedforward_layernorm_1")},
                       {.before = norm("pre_feedforward_layernorm_2"),
                        .op = std::make_shared<const Experts>(op),
                        .after = norm("post_feedforward_layernorm_2")}},
          .after = layer.mlp_post_norm};
}

}  // namespace

ModelSpec gemma4_text(const Config& config) {
  auto decoder = Decoder::read(config.filled({{"hidden_size", 1536},
                                              {"num_hidden_layers", 35},
                                              {"intermediate_size", 6144},
                                              {"num_attention_heads", 8},
                                              {"head_dim", 256},
                                              {"rms_norm_eps", 1e-6},
                                              {"vocab_size", 262144},
                                              {"num_key_value_heads", 1}}));
  if (config.has("use_bidirectional_attention") && config.value("use_bidirectional_attention") == "all")
    fail("model", "config.json: \"use_bidirectional_attention\" is \"all\": this is no model that goes on with a text; give a causal one");
  decoder.names = Names::sandwich();
  decoder.activation = kernels::Activation::gelu_tanh;
  decoder.scale = 1;
  decoder.read_tie(config, true);

  const auto mixture = mixture_of(config);
  const auto kinds = kinds_of(config, decoder.layers);
  const auto sharing = config.count_or("num_kv_shared_layers", 20, 0);
  const int own = decoder.layers - sharing, window = config.count_or("sliding_window", 512), size = layer_input_size(config);
  if (own < 1)
    fail("model", "config.json: \"num_kv_shared_layers\" {} leaves none of {} layers with keys of its own; {}", sharing, decoder.layers, kMend);
  const bool wide = config.flag_or("use_double_wide_mlp", true);
  Kind local{decoder.head_dim, decoder.kv_heads}, global = local;
  settle_layers(config, kinds);
  const auto settled = [&](const char* key) { return config.settled().contains(key) ? config.settled().at(key).get<int>() : 0; };
  if (const int dim = settled("global_head_dim"); dim > 0)
    global.head_dim = dim;
  else if (const int given = config.is_null("global_head_dim") ? 0 : config.count_or("global_head_dim", 512, 0); given > 0)
    global.head_dim = given;
  global.values_from_keys = config.flag_or("attention_k_eq_v", false);
  if (const int heads = settled("num_global_key_value_heads"); heads > 0 && global.values_from_keys) global.kv_heads = heads;
  if (global.values_from_keys && config.has("num_global_key_value_heads")) global.kv_heads = config.count("num_global_key_value_heads");
  if (decoder.heads % global.kv_heads != 0)
    fail("model", "config.json: \"num_attention_heads\" {} is no multiple of \"num_global_key_value_heads\" {}", decoder.heads, global.kv_heads);
  local.rope = rope_of(config, "sliding_attention", local.head_dim);
  global.rope = rope_of(config, "full_attention", global.head_dim);

  // The last layers of either kind that have keys give them to those behind.
  int width = decoder.hidden;
  struct Giver {
    int layer = -1, first = 0;
  } local_giver, global_giver;
  for (auto* giver : {&local_giver, &global_giver}) {
    const bool of_global = giver == &global_giver;
    const auto is = [&](int i) { return (kinds[i] == "full_attention") == of_global; };
    bool read = false;
    for (int i = own; i < decoder.layers; ++i) read = read || is(i);
    if (!read) continue;
    for (int i = 0; i < own; ++i)
      if (is(i)) giver->layer = i;
    if (giver->layer < 0) fail("model", "config.json: layers share keys of a kind that no layer before them has; {}", kMend);
    const auto& kind = of_global ? global : local;
    giver->first = width;
    width += 2 * kind.kv_heads * kind.head_dim;
  }

  const Columns x = width > decoder.hidden || size > 0 ? Columns{0, decoder.hidden} : Columns{};
  auto spec = decoder.outer("gemma4_text");
  for (int i = 0; i < decoder.layers; ++i) {
    const bool full = kinds[i] == "full_attention";
    const auto& kind = full ? global : local;
    const auto& giver = full ? global_giver : local_giver;
    auto sized = decoder;
    sized.head_dim = kind.head_dim;
    sized.kv_heads = kind.kv_heads;
    if (wide && i >= own && sharing > 0) sized.intermediate *= 2;
    auto layer = sized.layer(i, kind.rope);
    auto& attention = layer.attention;
    attention.q_norm = rms_norm_over(layer.prefix + "self_attn.q_norm", kind.head_dim, decoder.eps);
    if (!full) attention.window = window;
    if (i < own) {
      attention.k_norm = rms_norm_over(layer.prefix + "self_attn.k_norm", kind.head_dim, decoder.eps);
      attention.v_norm = rms_norm_over("", kind.head_dim, decoder.eps, false);
      attention.values_from_keys = kind.values_from_keys;
      if (kind.values_from_keys) attention.inputs.pop_back();
      attention.gives = i == giver.layer;
    } else {
      attention.shared = Attention::Shared{giver.layer, giver.first};
      attention.inputs.resize(1);
    }
    auto block = layer.block();
    if (mixture) block.steps[1] = mixed_step(sized, layer, *mixture, spec.imports);
    if (attention.gives) block.steps[0].branches[0].gives = giver.first;
    if (size > 0) {
      PerLayerGate gate;
      gate.input = {width, size};
      gate.gate = block_linear(i, layer.prefix + "per_layer_input_gate", Role::other, size, decoder.hidden);
      gate.projection = block_linear(i, layer.prefix + "per_layer_projection", Role::other, decoder.hidden, size);
      block.steps.push_back(
          {.branches = {{.op = std::make_shared<const PerLayerGate>(gate), .after = decoder.norm_at(layer.prefix + "post_per_layer_input_norm")}},
           .drops = gate.input});
    }
    for (auto& step : block.steps) step.columns = x;
    block.scalar = ParameterSpec{layer.prefix + "layer_scalar", {1}};
    spec.blocks.push_back(std::move(block));
    if (i >= own)
      for (const char* unread : {"k_proj", "v_proj", "k_norm"})
        spec.left_out.push_back({layer.prefix + "self_attn." + unread + ".*", "keys and values of layers that read an earlier layer's"});
  }
  for (const char* bound : {"*input_max", "*input_min", "*output_max", "*output_min"})
    spec.left_out.push_back({bound, "ranges for a quantizer of activations"});

  BlockSpec front;
  if (width > decoder.hidden) {
    EmptyColumns room;
    room.width = width - decoder.hidden;
    front.steps.push_back({.branches = {{.op = std::make_shared<const EmptyColumns>(room)}}, .replaces = true});
  }
  if (size > 0) {
    PerLayerInputs inputs;
    inputs.layers = decoder.layers;
    inputs.size = size;
    inputs.x = {0, decoder.hidden};
    inputs.projection = {
        .path = decoder.prefix + "model.per_layer_model_projection", .role = Role::other, .out = decoder.layers * size, .in = decoder.hidden};
    inputs.table = {.path = decoder.prefix + "model.embed_tokens_per_layer",
                    .role = Role::embed,
                    .out = config.count_or("vocab_size_per_layer_input", 262144),
                    .in = decoder.layers * size};
    inputs.norm = rms_norm_over(decoder.prefix + "model.per_layer_projection_norm", size, decoder.eps);
    inputs.factor = 1 / std::sqrt(static_cast<float>(decoder.hidden));
    inputs.table_factor = std::sqrt(static_cast<float>(size));
    inputs.scale = std::sqrt(0.5f);
    front.steps.push_back({.branches = {{.op = std::make_shared<const PerLayerInputs>(inputs)}}, .replaces = true});
  }
  if (!front.steps.empty()) spec.front = std::move(front);
  spec.embedding_multiplier = std::sqrt(static_cast<float>(decoder.hidden));
  spec.logit_softcap = config.is_null("final_logit_softcapping") ? 0 : static_cast<float>(config.number_or("final_logit_softcapping", 30));
  return spec;
}

}  // namespace lquant::model::family
