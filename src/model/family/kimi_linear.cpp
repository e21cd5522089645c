// Kimi Linear (arXiv 2510.26692): most layers have a delta net with a decay for each key channel, whose gate and decays are of low rank; the others
// latent attention, in which nothing turns. DeepSeek-V3's mixtures behind the first layers.
#include <algorithm>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/deepseek.h"
#include "model/family/delta_net.h"

namespace lquant::model::family {
namespace {

GatedDelta kimi_net(const Layer& layer, int hidden, const DeltaSizes& sizes, float eps, Imports& imports) {
  const auto path = layer.prefix + "self_attn.";
  const auto linear = [&](const char* name, int out, int in) { return block_linear(layer.index, path + name, Role::other, out, in); };
  auto net = channel_net(layer, path, hidden, sizes, eps);
  net.inputs[3] = linear("g_a_proj", sizes.value_dim, hidden);
  net.gate_up = linear("g_b_proj", sizes.values(), sizes.value_dim);
  net.inputs[5] = linear("f_a_proj", sizes.value_dim, hidden);
  net.decay_up = linear("f_b_proj", sizes.keys(), sizes.value_dim);
  net.a_log.shape = {1, 1, sizes.value_heads, 1};
  net.a_log.keeps_dtype = net.dt_bias.keeps_dtype = true;
  for (const char* name : {"q_conv", "k_conv", "v_conv"}) {
    net.taps.push_back({path + name + ".conv.weight", {sizes.keys(), sizes.taps, 1}});
    auto row = reshaped(net.taps.back());
    row.sources = {path + name + "1d.weight"};
    imports.rows.push_back(std::move(row));
  }
  imports.rows.push_back(reshaped(net.dt_bias));
  return net;
}

Mixtures read_mixtures(const Config& config) {
  Mixtures all;
  all.sizes = Mixture::read(config.filled({{"num_experts_per_token", 1}}), "num_experts", "num_experts_per_token", "moe_intermediate_size");
  all.sizes.singles = "block_sparse_moe.experts.";
  all.sizes.single_gate = "w1", all.sizes.single_down = "w2", all.sizes.single_up = "w3";
  all.shared = config.count_or("num_shared_experts", 0, 0) * all.sizes.width;
  all.first = config.count_or("first_k_dense_replace", 0, 0);
  all.every = config.count_or("moe_layer_freq", 1);
  all.bare = false;
  auto& router = all.router;
  router.experts = all.sizes.experts, router.top_k = all.sizes.top_k;
  router.linear.fixed_format = kRouterFormat;
  const auto score = config.has("moe_router_activation_func") ? config.text("moe_router_activation_func") : "sigmoid";
  if (score != "sigmoid" && score != "softmax")
    fail("model", "config.json: \"moe_router_activation_func\" is {}, and mlx_lm knows sigmoid and softmax alone; {}", shown(score), kMend);
  if (score == "sigmoid") router.score = Router::Score::sigmoid;
  router.correction = correction_at("mlp.e_score_correction_bias", all.sizes.experts);
  router.normalize = config.flag_or("moe_renormalize", true) && all.sizes.top_k > 1;
  router.epsilon = 1e-20f;
  router.factor = static_cast<float>(config.number_or("routed_scaling_factor", 1));
  router.groups = read_groups(config.filled({{"n_group", config.count_or("num_expert_group", 1)}}), all.sizes.experts);
  return all;
}

/// The names that the published files have for what is not an expert.
void name_mixture(const Layer& layer, Imports& imports) {
  const auto row = [&](const std::string& ours, const std::string& theirs) {
    imports.rows.push_back({layer.prefix + "mlp." + ours, {layer.prefix + "block_sparse_moe." + theirs}});
  };
  row("gate", "gate");
  row("e_score_correction_bias", "gate.e_score_correction_bias");
  row("shared_experts", "shared_experts");
}

}  // namespace

ModelSpec kimi_linear(const Config& given) {
  const auto linear = given.child("linear_attn_config");
  // mlx_lm demands these and has no use for some of them.
  for (const char* key : {"head_dim", "num_key_value_heads", "model_max_length"}) given.count(key);
  given.number("rope_theta");
  const auto head_dim = given.count("head_dim");
  const auto config = given.filled({{"q_lora_rank", nullptr}, {"qk_nope_head_dim", head_dim}, {"v_head_dim", head_dim}});
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  DeltaSizes sizes;
  sizes.key_heads = sizes.value_heads = linear.count("num_heads");
  sizes.key_dim = sizes.value_dim = linear.count("head_dim");
  sizes.taps = linear.count_or("short_conv_kernel_size", 4, 2);
  const auto listed = linear.counts("kda_layers");  // counted from 1
  const auto is_linear = [&](int layer) { return std::find(listed.begin(), listed.end(), layer + 1) != listed.end(); };
  int nets = 0;
  for (int i = 0; i < decoder.layers; ++i) nets += is_linear(i) ? 1 : 0;
  if (nets == 0 || nets == decoder.layers || listed[0] < 1 || listed[0] > decoder.layers)
    fail("model",
         "config.json: \"linear_attn_config.kda_layers\" leaves no layers of one of both kinds, or begins with one that is not there; "
         "mlx_lm runs no such model; {}",
         kMend);
  auto latent = Latent::read(config, decoder);
  latent.absorbed = true;
  latent.bias = false;
  latent.eps = decoder.eps;
  const bool mixed = config.count("num_experts", 0) > 0;
  const auto mixtures = mixed ? read_mixtures(config) : Mixtures{};

  Imports imports;
  auto spec = decoder.build("kimi_linear", std::nullopt, [&](Layer& layer) {
    if (is_linear(layer.index))
      layer.mixer = std::make_shared<const GatedDelta>(kimi_net(layer, decoder.hidden, sizes, decoder.eps, imports));
    else
      layer.mixer = std::make_shared<const LatentAttention>(latent_attention(layer, latent, imports));
    if (!mixed || !mixtures.at(layer.index)) return;
    mixtures.put(layer, decoder.hidden, imports);
    name_mixture(layer, imports);
  });
  spec.imports = std::move(imports);
  spec.left_out.push_back({"model.mtp*", kNotRun});
  return spec;
}

}  // namespace lquant::model::family
