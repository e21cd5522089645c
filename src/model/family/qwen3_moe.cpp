// Qwen3 mixture of experts (arXiv 2505.09388): Qwen3's attention without rope scaling (mlx_lm knows none here); in every
// decoder_sparse_step-th layer outside mlp_only_layers the MLP is num_experts small ones behind a router.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec qwen3_moe(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, std::nullopt);
  decoder.qk_norm = true;
  auto spec = decoder.build("qwen3_moe", make_rope(decoder.head_dim, config.number("rope_theta"), false, nullptr, 0));

  config.count("max_position_embeddings");  // of no use here, but mlx_lm opens no model without it
  const int experts = config.count("num_experts", 0), step = config.count("decoder_sparse_step");
  const int width = config.count("moe_intermediate_size"), top_k = config.count("num_experts_per_tok");
  const bool normalize = config.flag("norm_topk_prob");
  const auto dense_layers = config.counts("mlp_only_layers");
  for (int i = 0; i < decoder.layers; ++i) {
    if (experts == 0 || (i + 1) % step != 0 || std::count(dense_layers.begin(), dense_layers.end(), i) > 0) continue;
    ExpertMlp mlp;
    mlp.experts = experts;
    mlp.top_k = top_k;
    if (mlp.top_k > experts) fail("model", "config.json: \"num_experts_per_tok\" {} exceeds \"num_experts\" {}", mlp.top_k, experts);
    mlp.normalize = normalize;
    mlp.router = block_linear(i, "mlp.gate", Role::router, experts, decoder.hidden);
    mlp.router.fixed_format = codec::Format{codec::Mode::affine, 8, 64};
    mlp.gate = block_linear(i, "mlp.switch_mlp.gate_proj", Role::expert_gate, width, decoder.hidden);
    mlp.up = block_linear(i, "mlp.switch_mlp.up_proj", Role::expert_up, width, decoder.hidden);
    mlp.down = block_linear(i, "mlp.switch_mlp.down_proj", Role::expert_down, decoder.hidden, width);
    for (auto* linear : {&mlp.gate, &mlp.up, &mlp.down}) linear->experts = experts;
    mlp.unstacked_path = "model.layers." + std::to_string(i) + ".mlp.experts";
    spec.blocks[i].mlp = std::move(mlp);
  }
  return spec;
}

}  // namespace lquant::model::family
