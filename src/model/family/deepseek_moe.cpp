// DeepSeekMoE (arXiv 2401.06066), the first DeepSeek with a mixture: softmax over all experts, whose shares are the weights as they are, beside
// experts that every token meets.
#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// mlx_lm knows linear scaling, with a factor that is a Python float, and passes over the others.
nlohmann::json known_scaling(const Config& config, std::vector<std::string>& warnings) {
  auto scaling = rope_scaling(config);
  if (!scaling.is_object() || scaling.empty()) return nullptr;
  const auto fields = config.child("rope_scaling");
  if (const auto type = fields.text("type"); type != "linear") {
    warnings.push_back(
        fmt::format("config.json: \"rope_scaling\" of type {} is not followed, as mlx_lm 0.32.2 does not; this type of model knows "
                    "linear scaling alone",
                    shown(type)));
    return nullptr;
  }
  scaling["factor"] = fields.number("factor");
  if (!config.value("rope_scaling")["factor"].is_number_float()) config.settle("rope_scaling", scaling);
  return scaling;
}

}  // namespace

ModelSpec deepseek(const Config& given) {
  const auto config = given.filled({{"vocab_size", 102400},
                                    {"hidden_size", 4096},
                                    {"intermediate_size", 11008},
                                    {"moe_intermediate_size", 1407},
                                    {"num_hidden_layers", 30},
                                    {"num_attention_heads", 32},
                                    {"num_key_value_heads", 32},
                                    {"rms_norm_eps", 1e-6}});
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.require_even_heads();
  decoder.tied = false;
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  const bool mixed = config.has("n_routed_experts");
  const int dense = config.count_or("first_k_dense_replace", 0, 0), step = config.count_or("moe_layer_freq", 1);
  const int shared = config.count_or_none("n_shared_experts");
  Mixture mixture;
  if (mixed) mixture = Mixture::read(config, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  Imports imports;
  std::vector<std::string> warnings;
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), false, known_scaling(config, warnings), 0);
  auto spec = decoder.build("deepseek", rope, [&](Layer& layer) {
    if (!mixed || layer.index < dense || layer.index % step != 0) return;
    auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate", imports);
    mlp.router.linear.dense_why = kBareRouter;
    layer.mlp = std::make_shared<const Experts>(mlp);
    if (shared > 0) layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, shared * mixture.width));
  });
  spec.imports = std::move(imports);
  spec.warnings = std::move(warnings);
  return spec;
}

}  // namespace lquant::model::family
