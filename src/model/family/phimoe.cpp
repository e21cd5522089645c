// Phi-3.5-MoE (arXiv 2404.14219): layer norms and biases everywhere, the head's too; positions by LongRoPE, whose magnitude is a field; a mixture
// in every layer, whose router mixes sparsely.
#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

RopeSpec positions(const Config& config, int head_dim) {
  const double theta = config.number_or("rope_theta", 10000);
  auto scaling = rope_scaling(config);
  if (scaling.is_null()) return make_rope(head_dim, theta, false, nullptr, 0);
  const auto fields = config.child("rope_scaling");
  fields.number("short_mscale");  // mlx_lm uses long factors alone, but opens no model without the short ones
  const auto magnitude = static_cast<float>(fields.number("long_mscale"));
  scaling["type"] = "longrope";
  scaling["original_max_position_embeddings"] = config.count_or("original_max_position_embeddings", 4096);
  auto rope = make_rope(head_dim, theta, false, scaling, config.count_or("max_position_embeddings", 131072));
  if (magnitude != 0) rope.magnitude = magnitude;
  return rope;
}

}  // namespace

ModelSpec phimoe(const Config& given) {
  const auto config = with_flat_positions(given).filled({{"vocab_size", 32064},
                                                         {"hidden_size", 4096},
                                                         {"intermediate_size", 6400},
                                                         {"num_hidden_layers", 32},
                                                         {"num_attention_heads", 32},
                                                         {"num_key_value_heads", 8},
                                                         {"rms_norm_eps", 1e-6},
                                                         {"num_local_experts", 16},
                                                         {"num_experts_per_tok", 2}});
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.require_even_heads();
  decoder.tied = false;
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = decoder.qkv_bias = decoder.o_bias = decoder.head_bias = true;
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  mixture.name_as_mixtral();
  const auto jitter = static_cast<float>(config.number_or("router_jitter_noise", 0.01));
  Imports imports;
  auto spec = decoder.build("phimoe", positions(config, decoder.head_dim), [&](Layer& layer) {
    auto mlp = experts_of(layer, decoder.hidden, mixture, "block_sparse_moe.gate", imports);
    mlp.router.score = Router::Score::sparse_mixer;
    mlp.router.jitter = jitter;
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
