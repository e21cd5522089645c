// Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): Qwen2's attention, a mixture in every layer, and beside it one expert that every token meets, behind
// a gate of its own.
#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {

ModelSpec qwen2_moe(const Config& config) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.require_even_heads();
  decoder.tied = false;
  decoder.qkv_bias = true;
  // mlx_lm opens a model with linear scaling and does not scale, and opens none with another.
  if (const auto scaling = rope_scaling(config); scaling.is_object() && !scaling.empty())
    if (!scaling.contains("factor") || scaling.value("type", nlohmann::json()) != "linear")
      fail("model", "config.json: \"rope_scaling\" is {}, with which mlx_lm opens no model of this type; take it out: positions are not scaled there",
           shown_json(scaling));
  const auto mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  const int shared = config.count("shared_expert_intermediate_size");
  Imports imports;
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 1e6), config.flag_or("rope_traditional", false), nullptr, 0);
  auto spec = decoder.build("qwen2_moe", rope, [&](Layer& layer) {
    layer.mlp = std::make_shared<const Experts>(experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports));
    auto beside = gated_mlp(layer, "mlp.shared_expert.", decoder.hidden, shared);
    beside.result_gate = block_linear(layer.index, layer.prefix + "mlp.shared_expert_gate", Role::other, 1, decoder.hidden);
    layer.shared = std::make_shared<const GatedMlp>(beside);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
