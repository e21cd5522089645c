// MiMo-V2: layers with a window beside layers that see everything, with heads of other numbers and widths, and values narrower than keys. A logit of
// each head takes part in its softmax. Experts behind a DeepSeek-V3 router.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"

namespace lquant::model::family {
namespace {

/// What layers of one kind have for themselves.
struct Kind {
  Decoder decoder;
  int value_dim = 0;
  bool sinks = false;
  std::optional<RopeSpec> rope = std::nullopt;

  Layer layer(int i) const {
    auto layer = decoder.layer(i, rope);
    auto& attention = layer.attention;
    attention.value_dim = value_dim;
    attention.inputs[2].out = decoder.kv_heads * value_dim;
    attention.output.in = decoder.heads * value_dim;
    if (sinks) attention.sinks = ParameterSpec{layer.prefix + "self_attn.attention_sink_bias", {decoder.heads}};
    return layer;
  }
};

}  // namespace

ModelSpec mimo_v2_flash(const Config& config) {
  const auto flat = with_flat_positions(config);
  const auto kind = [&](const std::string& prefix, const char* theta, const char* sinks) {
    const auto heads = prefix + "num_attention_heads", kv_heads = prefix + "num_key_value_heads", head_dim = prefix + "head_dim";
    const auto value_dim = prefix + "v_head_dim";
    Kind own{Decoder::read(config, {.heads = heads.c_str(), .kv_heads = kv_heads.c_str(), .head_dim = head_dim.c_str(), .eps = "layernorm_epsilon"})};
    own.decoder.tied = false;
    own.value_dim = config.count(value_dim.c_str());
    own.sinks = config.flag(sinks);
    own.rope = make_rope(rotated_features(flat, own.decoder.head_dim, std::nullopt), flat.number(theta), false, nullptr, 0);
    return own;
  };
  const auto global = kind("", "rope_theta", "add_full_attention_sink_bias"), local = kind("swa_", "swa_rope_theta", "add_swa_attention_sink_bias");
  const auto& decoder = global.decoder;
  const auto slides = config.counts("hybrid_layer_pattern", decoder.layers), routed = config.counts("moe_layer_freq", decoder.layers);
  for (const int wanted : {0, 1})
    if (std::find(slides.begin(), slides.end(), wanted) == slides.end())
      fail("model", "config.json: \"hybrid_layer_pattern\" has no {}, and mlx_lm runs a MiMo-V2 with both kinds of layers alone", wanted);
  const int window = config.count("sliding_window_size");
  const auto value_factor = static_cast<float>(config.number_or("attention_value_scale", 1));
  require_noaux(config);
  const auto deepseek = config.filled({{"routed_scaling_factor", 1.0}});
  config.count("max_position_embeddings");  // of no use here, but mlx_lm opens no model without it

  Mixture mixture;
  if (std::find(routed.begin(), routed.end(), 1) != routed.end())
    mixture = Mixture::read(config, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  const int shared = config.count_or_none("n_shared_experts");
  auto spec = decoder.outer("mimo_v2_flash");
  for (int i = 0; i < decoder.layers; ++i) {
    auto layer = (slides[i] == 1 ? local : global).layer(i);
    if (slides[i] == 1) layer.attention.window = window;
    layer.attention.value_factor = value_factor;
    if (routed[i] == 1) {
      auto mlp = experts_of(layer, decoder.hidden, mixture, "mlp.gate", spec.imports);
      mlp.router.linear.dense_why = kBareRouter;
      read_corrected_sigmoids(deepseek, layer.prefix + "mlp.gate.e_score_correction_bias", mlp.router);
      layer.mlp = std::make_shared<const Experts>(mlp);
      if (shared > 0)
        layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, mixture.width * shared));
    }
    spec.blocks.push_back(layer.block());
  }
  spec.left_out.push_back({"model.mtp*", kNotRun});
  return spec;
}

}  // namespace lquant::model::family
