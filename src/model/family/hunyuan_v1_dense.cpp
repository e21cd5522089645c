// Hunyuan's dense models: Llama with norms over each head of q and k behind the rotation. "rope_scaling" has an alpha by which the base grows, once
// and for all lengths.
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec hunyuan_v1_dense(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, false);
  decoder.names.q_norm = "self_attn.query_layernorm";
  decoder.names.k_norm = "self_attn.key_layernorm";
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.qk_norm = config.flag_or("use_qk_norm", true);
  double base = config.number_or("rope_theta", 10000);
  const auto scaling = rope_scaling(config);
  if (scaling.is_object() && !scaling.empty()) {
    const JsonView view("model", "config.json: rope_scaling", scaling, kMend);
    for (const char* unused : {"factor", "type"}) view.at(unused);  // mlx_lm opens no model without them
    const double alpha = view.at("alpha").number();
    if (!(alpha > 0)) view.at("alpha").refuse("a number above 0");
    base *= std::pow(alpha, decoder.head_dim / (decoder.head_dim - 2.0));
  }
  return decoder.build("hunyuan_v1_dense", make_rope(decoder.head_dim, base, false, nullptr, 0),
                       [](Layer& layer) { layer.attention.norms_behind_rope = true; });
}

}  // namespace lquant::model::family
