// InternLM 3: Llama with one flag for the biases of attention and one for the MLP's; positions are plain, linear or dynamic.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {

ModelSpec internlm3(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = decoder.hidden / decoder.heads;
  decoder.read_tie(config, false);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("qkv_bias", false);
  decoder.mlp_bias = config.flag_or("bias", false);
  const auto scaling = rope_scaling(config);
  if (scaling.is_object() && !scaling.empty()) {
    const JsonView view("model", "config.json: rope_scaling", scaling, kMend);
    const auto type = view.at("rope_type").text();
    if (type != "linear" && type != "dynamic") view.at("rope_type").refuse("linear or dynamic, which are what mlx_lm knows of InternLM 3");
    view.at("factor").number();
  }
  return decoder.build("internlm3", make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false), scaling,
                                              config.count_or("max_position_embeddings", 32768)));
}

}  // namespace lquant::model::family
