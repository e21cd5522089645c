// AFM (arXiv 2407.21075; type afm7): the first layers have keys and values of their own, rounded to 8 bits by trained scales, and q, k and v in one
// linear; the last layers read those of the last of the first, and their tensors are numbered anew.
#include <memory>

#include "base/error.h"
#include "model/family/family.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/per_layer.h"

namespace lquant::model::family {
namespace {

/// The layer as another of the model's blocks than its tensors' number says.
void place(Layer& layer, int block) {
  layer.index = block;
  for (auto& linear : layer.attention.inputs) linear.block = block;
  layer.attention.output.block = block;
  auto mlp = dynamic_cast<const GatedMlp&>(*layer.mlp);
  for (auto& linear : mlp.inputs) linear.block = block;
  mlp.down.block = block;
  layer.mlp = std::make_shared<const GatedMlp>(mlp);
}

}  // namespace

ModelSpec afm7(const Config& config) {
  auto decoder = Decoder::read(config.filled({{"rms_norm_eps", 1e-5}}), {.hidden = "hidden_dim",
                                                                         .layers = "num_layers",
                                                                         .intermediate = nullptr,
                                                                         .heads = "num_heads",
                                                                         .kv_heads = "num_kv_heads",
                                                                         .head_dim = nullptr});
  decoder.require_even_heads();
  const double width = decoder.hidden * config.number_or("hidden_dim_scale_factor", 3.25);
  if (!(width >= 1 && width < 1e9)) fail("model", "config.json: \"hidden_dim_scale_factor\" makes MLPs of {} features; {}", width, kMend);
  decoder.intermediate = static_cast<int>(width);
  const int reusing = config.count("num_kv_reuse_layers", 0), own = decoder.layers - reusing;
  if (own < 1)
    fail("model", "config.json: \"num_kv_reuse_layers\" {} leaves none of {} layers with keys of its own; {}", reusing, decoder.layers, kMend);
  decoder.always_tied(config);
  decoder.names.embedding = "model.embedding";
  decoder.names.final_norm = "model.output_norm";
  decoder.names.o = "self_attn.out_proj";
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 50000), true, nullptr, 0);
  auto later = decoder;
  later.names.layers = "model.kv_reuse_layers.";
  decoder.fused_attention = Decoder::Fused::in_order;

  const int H = decoder.hidden;
  auto spec = decoder.outer("afm7");
  for (int i = 0; i < decoder.layers; ++i) {
    auto layer = i < own ? decoder.layer(i, rope) : later.layer(i - own, rope);
    auto& attention = layer.attention;
    const auto over_head = [&](const char* name) {
      auto norm = decoder.norm_at(layer.prefix + name);
      norm.size = decoder.head_dim;
      norm.eps = 1e-5f;  // whatever config.json says
      return norm;
    };
    attention.norms_behind_rope = true;
    attention.q_norm = over_head("self_attn.q_norm");
    if (i < own) {
      attention.k_norm = over_head("self_attn.k_norm");
      attention.k_step = ParameterSpec{layer.prefix + "self_attn.quant_key_scale", {}};
      attention.v_step = ParameterSpec{layer.prefix + "self_attn.quant_value_scale", {}};
      attention.inputs[0].dense_why = "mlx_lm cannot load this fused linear packed";
      attention.gives = reusing > 0 && i == own - 1;
    } else {
      place(layer, i);
      attention.shared = Attention::Shared{own - 1, H};
      attention.inputs.resize(1);
    }
    auto block = layer.block();
    if (attention.gives) block.steps[0].branches[0].gives = H;
    if (reusing > 0)
      for (auto& step : block.steps) step.columns = {0, H};
    spec.blocks.push_back(std::move(block));
  }
  if (reusing > 0) {
    EmptyColumns room;
    room.width = 2 * decoder.kv_heads * decoder.head_dim;
    spec.front = BlockSpec{};
    spec.front->steps = {{.branches = {{.op = std::make_shared<const EmptyColumns>(room)}}, .replaces = true}};
  }
  return spec;
}

}  // namespace lquant::model::family
