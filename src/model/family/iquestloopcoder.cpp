// IQuest's Loop Coder: the decoder runs twice over the same tensors. In the second pass a query sees the first pass's keys and values, all before it,
// and those of its own pass through a window; a gate of each head mixes the two.
#include "base/error.h"
#include "model/family/family.h"
#include "model/ops/per_layer.h"

namespace lquant::model::family {

ModelSpec iquestloopcoder(const Config& config) {
  auto decoder = Decoder::read(config);
  config.count("head_dim");  // mlx_lm opens no model without it
  decoder.tied = config.flag_or("tie_word_embeddings", false);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  const int window = config.count_or("loop_window_size", 64);
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 500000), false, rope_scaling(config),
                              config.count_or("max_position_embeddings", 131072));
  const int H = decoder.hidden, width = decoder.kv_heads * decoder.head_dim;

  auto spec = decoder.outer("iquestloopcoder");
  spec.passes = config.count_or("loop_num", 2);
  if (spec.passes != 2) fail("model", "config.json: \"loop_num\" is {}, and mlx_lm runs this model's blocks 2 times alone", spec.passes);
  for (int i = 0; i < decoder.layers; ++i) {
    auto layer = decoder.layer(i, rope);
    const auto gate = decoder.prefix + "model.gate_projections." + std::to_string(i);
    const int first = H + 2 * i * width;
    layer.attention.gives = true;
    layer.attention.again =
        Attention::Again{{i, first}, window, {gate + ".weight", {decoder.heads, decoder.head_dim}}, {gate + ".bias", {decoder.heads}}};
    auto block = layer.block();
    for (auto& step : block.steps) step.columns = {0, H};
    block.steps[0].branches[0].gives = first;
    spec.blocks.push_back(std::move(block));
  }
  EmptyColumns room;
  room.width = 2 * decoder.layers * width;
  spec.front = BlockSpec{};
  spec.front->steps = {{.branches = {{.op = std::make_shared<const EmptyColumns>(room)}}, .replaces = true}};
  return spec;
}

}  // namespace lquant::model::family
