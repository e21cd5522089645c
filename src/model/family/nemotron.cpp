// Nemotron-4 and Minitron (arXiv 2402.16819, 2407.14679): layer norms with weight 1 + w, a plain MLP with relu², a part of each head turns. mlx_lm
// knows no scaling of positions but a linear one.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

nlohmann::json linear_scaling(const Config& config) {
  const auto scaling = rope_scaling(config);
  if (!scaling.is_object() || scaling.empty()) return nullptr;
  const JsonView view("model", "config.json: rope_scaling", scaling, kMend);
  const char* key = scaling.contains("type") ? "type" : "rope_type";
  const auto type = view.at(key).text();
  if (type == "default") {
    config.settle("rope_scaling", nullptr);
    return nullptr;
  }
  if (type != "linear") view.at(key).refuse("linear, which is what mlx_lm knows of Nemotron");
  // There it is found under "type" alone, and 2 for 2.0 is refused.
  auto written = scaling;
  written["type"] = type;
  written["factor"] = view.at("factor").number();
  if (written != scaling || !scaling["factor"].is_number_float()) config.settle("rope_scaling", written);
  return written;
}

}  // namespace

ModelSpec nemotron(const Config& config) {
  auto decoder = Decoder::read(config, {.eps = "norm_eps"});
  decoder.read_tie(config, false);
  if (!config.has("hidden_act")) config.settle("hidden_act", "relu2");  // of no use, but mlx_lm opens no model without it
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = true;
  decoder.norm_offset = 1;
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  decoder.plain_mlp = true;
  decoder.activation = kernels::Activation::relu2;
  const int turning = rotated_features(config, decoder.head_dim, 0.5);
  // It has "rope_traditional" too, which mlx_lm does not read here.
  return decoder.build("nemotron", make_rope(turning, config.number_or("rope_theta", 10000), false, linear_scaling(config), 0));
}

}  // namespace lquant::model::family
