// Mistral 4: DeepSeek-V3's layers with a softmax router, and Llama 4's temperature of queries.
#include "base/error.h"
#include "model/family/deepseek.h"

namespace lquant::model::family {

ModelSpec mistral4(const Config& given) {
  const auto scaling = rope_scaling(given, "rope_parameters");
  if (!scaling.is_object()) fail("model", "config.json: \"rope_parameters\" is missing, without which mlx_lm runs no Mistral 4; {}", kMend);
  const auto positions = given.child("rope_parameters");
  const auto config = given.filled({{"rope_theta", 10000.0}});
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.read_tie(config, false);
  auto sizes = Latent::read(config, decoder);
  sizes.absorbed = true;
  if (positions.value("type") != "default" && positions.value("rope_type") != "default")
    sizes.scale *= static_cast<float>(yarn_gain(config, "rope_parameters"));
  const bool interleaved = config.is_null("rope_interleave") || config.flag_or("rope_interleave", true);
  sizes.rope = make_rope(sizes.rotated, positions.number_or("rope_theta", 100000), interleaved, scaling, config.count("max_position_embeddings"));
  const QueryTemperature temperature{static_cast<float>(positions.number("llama_4_scaling_beta")),
                                     positions.count("original_max_position_embeddings")};
  auto mixtures = Mixtures::read(config);
  if (mixtures) {
    mixtures->bare = false;
    mixtures->every = 1;
    mixtures->router.f32 = true;
    mixtures->router.normalize = config.flag("norm_topk_prob");
    mixtures->router.epsilon = 1e-20f;
    for (const char* key : {"n_group", "topk_group"}) config.count(key);  // mlx_lm has no default for them
    mixtures->router.groups = read_groups(config, mixtures->sizes.experts);
  }
  Imports imports;
  auto spec = decoder.build("mistral4", std::nullopt, [&](Layer& layer) {
    auto attention = latent_attention(layer, sizes, imports);
    attention.temperature = temperature;
    layer.mixer = std::make_shared<const LatentAttention>(attention);
    if (!mixtures || !mixtures->at(layer.index)) return;
    mixtures->put(layer, decoder.hidden, imports);
    const auto& experts = static_cast<const Experts&>(*layer.mlp);
    fused_experts(experts, layer.prefix + "mlp.experts.gate_up_proj", layer.prefix + "mlp.experts.down_proj", false, imports);
  });
  spec.imports = std::move(imports);
  spec.left_out.push_back({"*activation_scale", "scales of activations, which another tool quantizes"});
  return spec;
}

}  // namespace lquant::model::family
