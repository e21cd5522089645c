// Ling 3 (BailingMoeV3): the last layer of each group has latent attention with a gate on each head, the others a delta net with a decay for each key
// channel, which is bounded below; mixtures behind the first layers. mlx_lm keeps embedding, head and the small linears of attention dense.
#include <limits>

#include "base/error.h"
#include "model/family/deepseek.h"
#include "model/family/delta_net.h"

namespace lquant::model::family {
namespace {

GatedDelta bailing_net(const Layer& layer, int hidden, const DeltaSizes& sizes, float eps, Imports& imports) {
  const auto path = layer.prefix + "attention.";
  auto net = channel_net(layer, path, hidden, sizes, eps);
  net.inputs[3] = block_linear(layer.index, path + "g_proj", Role::other, sizes.values(), hidden);
  leave_dense(net.inputs[4]);
  net.inputs[5] = block_linear(layer.index, path + "f_proj", Role::other, sizes.keys(), hidden);
  for (const char* name : {"q_conv1d", "k_conv1d", "v_conv1d"}) net.taps.push_back(sizes.taps_of(path + name + ".weight", sizes.keys(), imports));
  return net;
}

LatentAttention dense_latent_attention(const Layer& layer, const Latent& sizes, Imports& imports) {
  auto op = latent_attention(layer, sizes, imports, "attention.");
  for (auto* linear : {&op.q, &op.kv_a, &*op.embed_q, &*op.unembed_out, &*op.gate}) leave_dense(*linear);
  if (op.q_a) leave_dense(*op.q_a);
  return op;
}

}  // namespace

ModelSpec bailing_moe_v3(const Config& given) {
  const auto config = given.filled({{"vocab_size", 157184},
                                    {"hidden_size", 1536},
                                    {"intermediate_size", 4608},
                                    {"moe_intermediate_size", 512},
                                    {"moe_shared_expert_intermediate_size", 512},
                                    {"num_hidden_layers", 24},
                                    {"num_attention_heads", 16},
                                    {"num_experts", 128},
                                    {"num_experts_per_tok", 8},
                                    {"n_group", 8},
                                    {"topk_group", 4},
                                    {"head_dim", 128},
                                    {"kv_lora_rank", 512},
                                    {"qk_nope_head_dim", 128},
                                    {"qk_rope_head_dim", 64},
                                    {"v_head_dim", 128},
                                    {"rms_norm_eps", 1e-6},
                                    {"rope_theta", 6e6},
                                    {"max_position_embeddings", 131072}});
  for (const char* key : {"no_kda_lora", "kda_safe_gate", "rope_interleave"})
    if (!config.flag_or(key, true)) fail("model", "config.json: \"{}\" is false, and mlx_lm runs no such model; {}", key, kMend);
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.names.embedding = "model.word_embeddings";

  DeltaSizes sizes;
  sizes.key_heads = sizes.value_heads = decoder.heads;
  sizes.key_dim = sizes.value_dim = decoder.head_dim;
  sizes.taps = config.count_or("short_conv_kernel_size", 4, 2);
  const auto lower_bound = static_cast<float>(config.number_or("kda_lower_bound", -5));
  if (lower_bound > 0) fail("model", "config.json: \"kda_lower_bound\" is above 0; {}", kMend);
  auto latent = Latent::read(config, decoder, 256);
  latent.absorbed = latent.gated = true;
  latent.bias = false;
  latent.eps = decoder.eps;
  latent.output = "dense";
  latent.scale *= static_cast<float>(yarn_gain(config));
  latent.rope = make_rope(latent.rotated, config.number("rope_theta"), true, rope_scaling(config), config.count("max_position_embeddings"));

  const int dense = config.count_or("first_k_dense_replace", 1, 0);
  const auto mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  const int shared = config.count("moe_shared_expert_intermediate_size") * config.count_or("num_shared_experts", 1);
  auto groups = read_groups(config, mixture.experts);
  groups.lost = -std::numeric_limits<float>::infinity();
  const auto factor = static_cast<float>(config.number_or("routed_scaling_factor", 2.5));
  const int group = config.count_or("layer_group_size", 4);

  Imports imports;
  auto spec = decoder.build("bailing_moe_v3", std::nullopt, [&](Layer& layer) {
    const int i = layer.index;
    if ((i + 1) % group == 0 || i >= decoder.layers / group * group) {
      layer.mixer = std::make_shared<const LatentAttention>(dense_latent_attention(layer, latent, imports));
    } else {
      auto net = bailing_net(layer, decoder.hidden, sizes, decoder.eps, imports);
      net.lower_bound = lower_bound;
      layer.mixer = std::make_shared<const GatedDelta>(net);
    }
    if (i < dense) return;
    auto experts = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    auto& router = experts.router;
    router.score = Router::Score::sigmoid;
    router.f32 = router.f32_product = true;
    router.correction = ParameterSpec{layer.prefix + "mlp.gate.expert_bias", {mixture.experts}};
    router.groups = groups;
    router.normalize = true;
    router.epsilon = 1e-20f;
    router.factor = factor;
    router.linear.dense_why = kBareRouter;
    layer.mlp = std::make_shared<const Experts>(experts);
    layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, shared));
  });
  spec.imports = std::move(imports);
  leave_dense(spec.embedding);
  if (spec.head) leave_dense(*spec.head);
  leave_out_next_layers(config, decoder, spec);
  return spec;
}

}  // namespace lquant::model::family
