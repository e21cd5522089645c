// Kimi K3: Kimi Linear's delta nets and latent attention without positions, with gates of full width; experts between latents, SiTU for silu; and a
// list of residuals that each sub-layer attends over. Pictures are a tower's, which is kept.
#include <algorithm>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/deepseek.h"
#include "model/family/delta_net.h"
#include "model/family/wrapper.h"
#include "model/ops/residual_mix.h"

namespace lquant::model::family {
namespace {

/// Rows of one tensor, of which some checkpoints have the parts.
Import joined(const std::string& target, const std::string& path, const char* suffix, std::vector<Change> changes = {}) {
  Import row{target, {}, std::move(changes)};
  for (const char* part : {"q", "k", "v"}) row.sources.push_back(path + part + suffix);
  row.changes.push_back({Change::Kind::join});
  return row;
}

struct Net {
  DeltaSizes sizes;
  bool wide_gate = false;
  std::optional<float> lower_bound;

  GatedDelta op(const Layer& layer, int hidden, float eps, Imports& imports) const {
    const auto path = layer.prefix + "self_attn.";
    const auto linear = [&](const char* name, Role role, int out, int in) { return block_linear(layer.index, path + name, role, out, in); };
    const int width = sizes.keys();
    auto net = channel_net(layer, path, hidden, sizes, eps);
    auto mixed = linear("qkv_proj", Role::qkv, 3 * width, hidden);
    mixed.parts = parts_in_order(width, width);
    net.inputs = {mixed, linear(wide_gate ? "g_proj" : "g_a_proj", Role::other, wide_gate ? width : sizes.key_dim, hidden),
                  linear("b_proj", Role::other, sizes.key_heads, hidden), linear("f_a_proj", Role::other, sizes.key_dim, hidden)};
    if (!wide_gate) net.gate_up = linear("g_b_proj", Role::other, width, sizes.key_dim);
    net.decay_up = linear("f_b_proj", Role::other, width, sizes.key_dim);
    net.lower_bound = lower_bound;
    net.a_log.keeps_dtype = net.dt_bias.keeps_dtype = true;
    net.taps = {{path + "qkv_conv.conv.weight", {3 * width, sizes.taps, 1}}};
    imports.rows.push_back(joined(mixed.path, path, "_proj"));
    const Change turned{.kind = Change::Kind::reshape, .shape = {width, sizes.taps, 1}};
    for (const char* name : {"_conv1d.weight", "_conv.conv.weight"}) imports.rows.push_back(joined(net.taps[0].path, path, name, {turned}));
    imports.rows.push_back(reshaped(net.dt_bias));
    // Some files have room for more heads.
    const Change cut{.kind = Change::Kind::slice, .axis = 0, .first = 0, .count = sizes.key_heads};
    imports.rows.push_back({net.a_log.path, {net.a_log.path}, {{Change::Kind::flatten}, cut}});
    return net;
  }
};

Net read_net(const Config& config) {
  const auto linear = config.child("linear_attn_config");
  Net net;
  net.sizes.key_heads = net.sizes.value_heads = linear.count("num_heads");
  net.sizes.key_dim = net.sizes.value_dim = linear.count("head_dim");
  net.sizes.taps = linear.count("short_conv_kernel_size", 2);
  net.wide_gate = linear.flag_or("use_full_rank_gate", false);
  if (linear.has("gate_lower_bound")) net.lower_bound = static_cast<float>(linear.number("gate_lower_bound"));
  if (net.lower_bound.value_or(-1) > 0) fail("model", "config.json: \"{}\" is above 0; {}", linear.place("gate_lower_bound"), kMend);
  return net;
}

struct LatentMixtures {
  Mixture sizes;
  Router router;
  int first = 0, every = 1;
  int shared = 0, latent = 0;  ///< widths; 0: there are none
  bool norm = false;

  bool at(int layer) const { return sizes.experts > 0 && layer >= first && layer % every == 0; }
  void put(Layer& layer, const Decoder& decoder, const kernels::Situ& situ, Imports& imports) const;
};

LatentMixtures read_latent_mixtures(const Config& config) {
  LatentMixtures all;
  if (config.count_or_none("num_experts", 0) == 0) return all;
  all.sizes = Mixture::read(config, "num_experts", "num_experts_per_token", "moe_intermediate_size");
  all.sizes.singles = "block_sparse_moe.experts.";
  all.sizes.single_gate = "w1", all.sizes.single_down = "w2", all.sizes.single_up = "w3";
  all.shared = config.count_or("num_shared_experts", 0, 0) * all.sizes.width;
  all.first = config.count_or("first_k_dense_replace", 0, 0);
  all.every = config.count_or("moe_layer_freq", 1);
  all.latent = config.count_or_none("routed_expert_hidden_size");
  all.norm = all.latent > 0 && config.flag_or("latent_moe_use_norm", false);
  auto& router = all.router;
  router.experts = all.sizes.experts, router.top_k = all.sizes.top_k;
  router.score = Router::Score::sigmoid;
  router.f32 = router.rounded = true;
  router.normalize = config.flag_or("moe_renormalize", true) && router.top_k > 1;
  router.epsilon = 1e-20f;
  router.factor = static_cast<float>(config.number_or("routed_scaling_factor", 1));
  const int groups = config.count_or("num_expert_group", 1);
  const int kept = config.count_or("topk_group", 1);
  if (groups == 1) return all;
  if (kept > groups || router.experts % groups != 0 || router.experts < 2 * groups)
    fail("model", "config.json: of {} experts no {} of {} groups of two and more can be made (\"topk_group\", \"num_expert_group\"); {}",
         router.experts, kept, groups, kMend);
  router.groups = {.count = groups, .kept = kept};
  return all;
}

void LatentMixtures::put(Layer& layer, const Decoder& decoder, const kernels::Situ& situ, Imports& imports) const {
  const auto linear = [&](const char* name, int out, int in) {
    return block_linear(layer.index, layer.prefix + "mlp." + name, Role::other, out, in);
  };
  auto op = experts_of(layer, latent > 0 ? latent : decoder.hidden, sizes, "mlp.gate", imports);
  auto gate = op.router.linear;
  gate.in = decoder.hidden;
  gate.fixed_format = kRouterFormat;
  op.router = router;
  op.router.linear = gate;
  op.router.correction = correction_at(layer.prefix + "mlp.e_score_correction_bias", router.experts);
  op.situ = situ;
  if (latent > 0) {
    op.into = linear("routed_expert_down_proj", latent, decoder.hidden);
    op.into->role = Role::down;  // as mlx_lm's recipes, which go by the name, take it
    op.out_of = linear("routed_expert_up_proj", decoder.hidden, latent);
    if (norm) op.out_norm = rms_norm_over(layer.prefix + "mlp.routed_expert_norm", latent, decoder.eps);
  }
  layer.mlp = std::make_shared<const Experts>(op);
  if (shared > 0) {
    auto own = gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, shared);
    own.situ = situ;
    layer.shared = std::make_shared<const GatedMlp>(own);
  }
  const auto theirs = layer.prefix + "block_sparse_moe.", ours = layer.prefix + "mlp.";
  for (const char* name : {"gate", "shared_experts", "routed_expert_down_proj", "routed_expert_up_proj", "routed_expert_norm", "switch_mlp"})
    imports.rows.push_back({ours + name, {theirs + name}});
  for (const char* name : {"gate.e_score_correction_bias", "e_score_correction_bias"})
    imports.rows.push_back({op.router.correction->path, {theirs + name}});
}

ResidualMix mix_at(const std::string& path, const Decoder& decoder, Imports& imports) {
  ResidualMix mix;
  mix.hidden = decoder.hidden;
  mix.eps = decoder.eps;
  mix.norm = {path + "_norm.weight", {decoder.hidden}};
  mix.projection = {path + "_proj.weight", {1, decoder.hidden}};
  imports.rows.push_back({mix.norm.path, {path + ".norm_weight"}});
  imports.rows.push_back({mix.projection.path, {path + ".proj_weight"}});
  return mix;
}

/// A layer's block whose sub-layers attend over the list of residuals.
BlockSpec over_residuals(const Layer& layer, const Decoder& decoder, bool starts, Imports& imports) {
  const auto alone = [](auto op) { return Step{.branches = {{.op = std::make_shared<const decltype(op)>(op)}}, .replaces = true}; };
  ResidualEnter enter;
  ResidualTurn turn;
  ResidualLeave leave;
  enter.mix = mix_at(layer.prefix + "self_attention_res", decoder, imports);
  turn.mix = mix_at(layer.prefix + "mlp_res", decoder, imports);
  enter.starts = turn.starts = starts;
  leave.hidden = decoder.hidden;
  auto block = layer.block();
  for (auto& step : block.steps) step.columns = {0, decoder.hidden}, step.instead = true;
  block.steps.insert(block.steps.begin() + 1, alone(turn));
  block.steps.insert(block.steps.begin(), alone(enter));
  block.steps.push_back(alone(leave));
  return block;
}

void refuse(const Config& config) {
  const std::pair<const char*, const char*> known[] = {{"hidden_act", "situ"}, {"moe_router_activation_func", "sigmoid"}};
  for (const auto& [key, value] : known)
    if (config.has(key) && config.text(key) != value)
      fail("model", "config.json: \"{}\" is {}, and mlx_lm knows {} alone here; {}", config.place(key), shown(config.text(key)), value, kMend);
  if (!config.flag_or("mla_use_nope", true))
    fail("model", "config.json: \"{}\" is false, and mlx_lm runs latent attention without positions alone here; {}", config.place("mla_use_nope"),
         kMend);
}

nlohmann::json defaults() {
  return {{"vocab_size", 163840},       {"hidden_size", 7168},  {"num_hidden_layers", 93}, {"num_attention_heads", 96},  {"num_key_value_heads", 96},
          {"intermediate_size", 33792}, {"rms_norm_eps", 1e-5}, {"q_lora_rank", nullptr},  {"num_experts_per_token", 16}};
}

}  // namespace

ModelSpec kimi_k3(const Config& given) {
  const bool inside = given.has("text_config");
  const auto config = (inside ? text_of(given) : given.under(kTextPrefix)).filled(defaults());
  refuse(config);
  auto decoder = Decoder::read(config, {.kv_heads = nullptr, .head_dim = nullptr});
  decoder.read_tie(config, false);
  const auto net = read_net(config);
  const auto listed = config.child("linear_attn_config").counts("kda_layers");  // counted from 1
  const auto is_linear = [&](int layer) { return std::find(listed.begin(), listed.end(), layer + 1) != listed.end(); };
  std::optional<Latent> latent;
  for (int i = 0; i < decoder.layers && !latent; ++i)
    if (!is_linear(i)) latent = Latent::read(config, decoder);
  if (latent) {
    latent->absorbed = true;
    latent->bias = false;
    latent->gated_by_feature = config.flag_or("mla_use_output_gate", false);
  }
  kernels::Situ situ;
  const auto truthy = [&](const char* key) { return config.has(key) && config.number(key) != 0; };
  if (truthy("activation_situ_beta")) situ.beta = static_cast<float>(config.number("activation_situ_beta"));
  if (config.has("activation_situ_linear_beta")) situ.linear = static_cast<float>(config.number("activation_situ_linear_beta"));
  if (config.has("activation_situ_linear_beta") && !(situ.linear > 0))
    fail("model", "config.json: \"{}\" is not above 0; {}", config.place("activation_situ_linear_beta"), kMend);
  const auto mixtures = read_latent_mixtures(config);
  const int every = config.count_or_none("attn_res_block_size");

  Imports imports;
  auto spec = decoder.outer("kimi_k3");
  for (int i = 0; i < decoder.layers; ++i) {
    auto layer = decoder.layer(i, std::nullopt);
    auto mlp = dynamic_cast<const GatedMlp&>(*layer.mlp);
    mlp.situ = situ;
    layer.mlp = std::make_shared<const GatedMlp>(mlp);
    if (is_linear(i))
      layer.mixer = std::make_shared<const GatedDelta>(net.op(layer, decoder.hidden, decoder.eps, imports));
    else
      layer.mixer = std::make_shared<const LatentAttention>(latent_attention(layer, *latent, imports));
    if (mixtures.at(i)) mixtures.put(layer, decoder, situ, imports);
    spec.blocks.push_back(every > 0 ? over_residuals(layer, decoder, i % every == 0, imports) : layer.block());
  }
  if (every > 0) {
    ResidualMerge merge;
    merge.mix = mix_at(decoder.prefix + "model.output_attn_res", decoder, imports);
    spec.tail = BlockSpec{};
    spec.tail->steps = {{.branches = {{.op = std::make_shared<const ResidualMerge>(merge)}}, .replaces = true}};
  }
  spec.imports = std::move(imports);
  leave_out_next_layers(config, decoder, spec);
  for (const char* pattern : {"mtp*", "model.mtp*", "language_model.mtp*", "language_model.model.mtp*"}) spec.left_out.push_back({pattern, kNotRun});
  spec = wrapped(std::move(spec), {{"the vision tower", "vision_tower.", {}},
                                   {"the vision tower", "vision_model.", {}},
                                   {"the projector", "multi_modal_projector.", {}},
                                   {"the projector", "mm_projector.", {}}});
  if (!inside) spec.text_config.clear();
  return spec;
}

}  // namespace lquant::model::family
