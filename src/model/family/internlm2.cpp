// InternLM 2 (arXiv 2403.17297): Llama under other names, with q, k and v in one linear whose rows come group by group: the query heads that share
// a key head, that head, its value head. Positions are plain, linear or dynamic.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec internlm2(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  auto& names = decoder.names;
  names.embedding = "model.tok_embeddings";
  names.head = "output";
  names.attention_norm = "attention_norm";
  names.mlp_norm = "ffn_norm";
  names.qkv = "attention.wqkv";
  names.o = "attention.wo";
  names.gate = "feed_forward.w1";
  names.up = "feed_forward.w3";
  names.down = "feed_forward.w2";
  decoder.read_tie(config, false);
  decoder.fused_attention = Decoder::Fused::by_group;
  decoder.qkv_bias = decoder.o_bias = config.flag_or("bias", true);
  const auto scaling = rope_scaling(config);
  if (scaling.is_object() && !scaling.empty()) {
    const JsonView view("model", "config.json: rope_scaling", scaling, kMend);
    const auto type = view.at("type").text();
    if (type != "linear" && type != "dynamic") view.at("type").refuse("linear or dynamic, which are what mlx_lm knows of InternLM 2");
    view.at("factor").number();
  }
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false), scaling,
                              config.count_or("max_position_embeddings", 32768));
  auto spec = decoder.build("internlm2", rope);
  spec.left_out.push_back({"*.attention.rope.inv_freq", "rotary tables, which follow from config.json"});
  return spec;
}

}  // namespace lquant::model::family
