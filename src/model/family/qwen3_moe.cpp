// Qwen3 mixture of experts (arXiv 2505.09388): Qwen3's attention without rope scaling (mlx_lm knows none here); in every
// decoder_sparse_step-th layer outside mlp_only_layers the MLP is num_experts small ones behind a router.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/ops/experts.h"

namespace lquant::model::family {
namespace {

/// A stack of experts, which Hugging Face keeps one by one.
LinearSpec expert_linear(const Layer& layer, const std::string& name, Role role, int out, int in, int experts, int top_k, Imports& imports) {
  auto linear = block_linear(layer.index, layer.prefix + "mlp.switch_mlp." + name, role, out, in);
  linear.experts = experts;
  linear.top_k = top_k;
  Import row{linear.path, {}, {{Change::Kind::stack}}};
  for (int e = 0; e < experts; ++e) row.sources.push_back(layer.prefix + "mlp.experts." + std::to_string(e) + "." + name);
  imports.rows.push_back(std::move(row));
  return linear;
}

}  // namespace

ModelSpec qwen3_moe(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.read_tie(config, std::nullopt);
  decoder.qk_norm = true;
  const auto rope = make_rope(decoder.head_dim, config.number("rope_theta"), false, nullptr, 0);

  config.count("max_position_embeddings");  // of no use here, but mlx_lm opens no model without it
  const int experts = config.count("num_experts", 0), step = config.count("decoder_sparse_step");
  const int width = config.count("moe_intermediate_size"), top_k = config.count("num_experts_per_tok");
  const bool normalize = config.flag("norm_topk_prob");
  const auto dense_layers = config.counts("mlp_only_layers");
  if (top_k > experts && experts > 0) fail("model", "config.json: \"num_experts_per_tok\" {} exceeds \"num_experts\" {}", top_k, experts);
  Imports imports;
  auto spec = decoder.build("qwen3_moe", rope, [&](Layer& layer) {
    const int i = layer.index;
    if (experts == 0 || (i + 1) % step != 0 || std::count(dense_layers.begin(), dense_layers.end(), i) > 0) return;
    Experts mlp;
    mlp.experts = experts;
    mlp.top_k = top_k;
    mlp.normalize = normalize;
    mlp.router = block_linear(i, layer.prefix + "mlp.gate", Role::router, experts, decoder.hidden);
    mlp.router.fixed_format = codec::Format{codec::Mode::affine, 8, 64};
    mlp.gate = expert_linear(layer, "gate_proj", Role::expert_gate, width, decoder.hidden, experts, top_k, imports);
    mlp.up = expert_linear(layer, "up_proj", Role::expert_up, width, decoder.hidden, experts, top_k, imports);
    mlp.down = expert_linear(layer, "down_proj", Role::expert_down, decoder.hidden, width, experts, top_k, imports);
    layer.mlp = std::make_shared<const Experts>(mlp);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
