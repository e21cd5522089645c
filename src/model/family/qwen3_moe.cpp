// Qwen3 mixture of experts (arXiv 2505.09388): Qwen3's attention without rope scaling (mlx_lm knows none here); in every
// decoder_sparse_step-th layer outside mlp_only_layers the MLP is num_experts small ones behind a router.
#include <fmt/format.h>

#include "model/family/family.h"
#include "model/family/gguf.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// llama.cpp norms the experts' weights without being told; layers with a dense MLP are found by its tensors.
void complete_qwen3_moe(const gguf::Metadata& metadata, const gguf::Tensors& tensors, nlohmann::json& config) {
  gguf::Fields fields(metadata, config);
  fields.count("num_experts", "expert_count");
  fields.count("num_experts_per_tok", "expert_used_count");
  fields.count("moe_intermediate_size", "expert_feed_forward_length");
  config["decoder_sparse_step"] = 1;
  config["norm_topk_prob"] = true;
  config["mlp_only_layers"] = nlohmann::json::array();
  const int layers = config["num_hidden_layers"];
  for (int i = 0; i < layers; ++i)
    if (tensors.contains(fmt::format("model.layers.{}.mlp.gate_proj.weight", i))) config["mlp_only_layers"].push_back(i);
}

}  // namespace

ModelSpec qwen3_moe(const Config& given) {
  auto config = with_flat_positions(given);
  // In the words of transformers 5.
  if (!config.has("num_experts") && config.has("num_local_experts")) config = config.with({{"num_experts", config.count("num_local_experts")}});
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, std::nullopt);
  decoder.qk_norm = true;
  const auto rope = make_rope(decoder.head_dim, config.number("rope_theta"), false, nullptr, 0);

  config.count("max_position_embeddings");  // of no use here, but mlx_lm opens no model without it
  const bool dense = config.count("num_experts", 0) == 0;
  const auto mixed = layers_with_experts(config);
  const bool normalize = config.flag("norm_topk_prob");
  Mixture mixture;
  if (dense)
    for (const char* key : {"num_experts_per_tok", "moe_intermediate_size"}) config.count(key, 0);  // mlx_lm wants them even so
  else
    mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  Imports imports;
  auto spec = decoder.build("qwen3_moe", rope, [&](Layer& layer) {
    if (dense || !mixed(layer.index)) return;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    mlp.router.linear.fixed_format = kRouterFormat;
    mlp.router.normalize = normalize;
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  spec.imports = std::move(imports);
  return spec;
}

gguf::Architecture qwen3_moe_gguf() {
  constexpr rows::Row kExperts[] = {{"ffn_gate_inp", "mlp.gate"},
                                    {"ffn_gate_exps", "mlp.switch_mlp.gate_proj"},
                                    {"ffn_up_exps", "mlp.switch_mlp.up_proj"},
                                    {"ffn_down_exps", "mlp.switch_mlp.down_proj"},
                                    {"ffn_gate_up_exps", "mlp.switch_mlp.gate_proj", gguf::Change::first_half},
                                    {"ffn_gate_up_exps", "mlp.switch_mlp.up_proj", gguf::Change::second_half}};
  return {.name = "qwen3moe",
          .model_type = "qwen3_moe",
          .class_name = "Qwen3MoeForCausalLM",
          .block = rows::join({rows::kAttention, rows::kHeadNorms, rows::kNorms, rows::kMlp, kExperts}),
          .complete = complete_qwen3_moe};
}

}  // namespace lquant::model::family
