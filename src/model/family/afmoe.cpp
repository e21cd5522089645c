// AFMoE (Trinity): norms before and behind attention and MLP; each feature of attention's result is weighed by a sigmoid of its own; layers with a
// window have rotary positions, the others see everything and have none. The first layers are dense.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec afmoe(const Config& given) {
  const auto config = given.filled({{"vocab_size", 200192},
                                    {"hidden_size", 2048},
                                    {"intermediate_size", 6144},
                                    {"moe_intermediate_size", 1024},
                                    {"num_hidden_layers", 32},
                                    {"num_attention_heads", 32},
                                    {"num_key_value_heads", 4},
                                    {"head_dim", 64},
                                    {"max_position_embeddings", 131072},
                                    {"rms_norm_eps", 1e-5},
                                    {"rope_theta", 10000.0},
                                    {"num_experts", 128},
                                    {"num_experts_per_tok", 8}});
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.names.attention_post_norm = "post_attention_layernorm";
  decoder.names.mlp_norm = "pre_mlp_layernorm";
  decoder.names.mlp_post_norm = "post_mlp_layernorm";
  decoder.qk_norm = true;
  const auto types = config.texts("layer_types", decoder.layers);
  if (std::find(types.begin(), types.end(), "full_attention") == types.end())
    fail("model", "config.json: \"layer_types\" names no layer of full_attention, without which mlx_lm does not run an AFMoE");
  const int window = config.count_or("sliding_window", 2048);
  const auto rope = make_rope(decoder.head_dim, config.number("rope_theta"), false, rope_scaling(config), config.count("max_position_embeddings"));

  auto mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  mixture.stacks = "mlp.experts.";
  const bool sigmoid = !config.has("score_func") || config.text("score_func") == "sigmoid";
  const int dense_layers = config.count_or("num_dense_layers", 2, 0), shared = config.count_or("num_shared_experts", 1, 0);
  Imports imports;
  auto spec = decoder.build("afmoe", rope, [&](Layer& layer) {
    auto& attention = layer.attention;
    if (types[layer.index] == "sliding_attention") {
      attention.window = window;
    } else {
      attention.rope.reset();
    }
    attention.gate = OutputGate{
        .linear = block_linear(layer.index, layer.prefix + "self_attn.gate_proj", Role::other, decoder.heads * decoder.head_dim, decoder.hidden)};
    if (layer.index < dense_layers) return;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.router.gate", imports);
    auto& router = mlp.router;
    router.linear.fixed_format = kRouterFormat;
    router.score = sigmoid ? Router::Score::sigmoid : Router::Score::softmax;
    router.f32 = true;
    router.correction = correction_at(layer.prefix + "mlp.expert_bias", mixture.experts);
    router.groups = read_groups(config, mixture.experts);
    router.normalize = config.flag_or("route_norm", true) && mixture.top_k > 1;
    router.factor = static_cast<float>(config.number_or("route_scale", 2.826));
    layer.mlp = std::make_shared<const Experts>(mlp);
    if (shared > 0) layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, mixture.width * shared));
  });
  spec.imports = std::move(imports);
  if (config.flag_or("mup_enabled", true)) spec.embedding_multiplier = std::sqrt(static_cast<float>(decoder.hidden));
  return spec;
}

}  // namespace lquant::model::family
