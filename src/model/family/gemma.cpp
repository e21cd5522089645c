// Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the text part of Gemma 3 (arXiv 2503.19786): norms with weight 1 + w, from Gemma 2 on on
// both sides of each sub-layer, and embeddings times sqrt(hidden). The activation is GELU, in Gemma 1 the exact one as in mlx_lm (Hugging Face runs
// its tanh form there, as in the others). Gemma 2 caps scores and logits softly; mlx_lm gives all its layers the whole context. Gemma 3 norms q and
// k and alternates local layers, with a rope base of their own, with global ones.
#include <mlx/types/bf16.h>

#include <cmath>
#include <tuple>

#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

/// The factor of attention scores.
float scale_of(const Config& config, double otherwise) {
  const double divisor = config.number_or("query_pre_attn_scalar", otherwise);
  if (!(divisor > 0)) fail("model", "config.json: \"query_pre_attn_scalar\" is {}, not above 0; {}", divisor, kMend);
  return static_cast<float>(1 / std::sqrt(divisor));
}

Decoder sandwiched(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.names = Names::sandwich();
  decoder.norm_offset = 1;
  decoder.activation = kernels::Activation::gelu_tanh;
  return decoder;
}

}  // namespace

ModelSpec gemma(const Config& config) {
  auto decoder = Decoder::read(config);
  decoder.head_dim = config.count("head_dim");
  decoder.always_tied(config);
  decoder.norm_offset = 1;
  decoder.activation = kernels::Activation::gelu;
  const auto rope = make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false), nullptr, 0);
  auto spec = decoder.build("gemma", rope);
  spec.embedding_multiplier = std::sqrt(static_cast<float>(decoder.hidden));
  return spec;
}

ModelSpec gemma2(const Config& config) {
  auto decoder = sandwiched(config);
  decoder.head_dim = config.count("head_dim");
  decoder.always_tied(config);
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (config.is_null(key)) fail("model", "config.json: \"{}\" is null, and mlx_lm does not run Gemma 2 without it", key);
  decoder.scale = scale_of(config, 144);
  const auto softcap = static_cast<float>(config.number_or("attn_logit_softcapping", 50));
  auto spec = decoder.build("gemma2",
                            make_rope(decoder.head_dim, config.number_or("rope_theta", 10000), config.flag_or("rope_traditional", false), nullptr, 0),
                            [&](Layer& layer) { layer.attention.softcap = softcap; });
  spec.embedding_multiplier = std::sqrt(static_cast<float>(decoder.hidden));
  spec.logit_softcap = static_cast<float>(config.number_or("final_logit_softcapping", 30));
  return spec;
}

ModelSpec gemma3_text(const Config& config) {
  // Published files leave out what equals the 1B model's values.
  auto decoder = sandwiched(config.filled({{"hidden_size", 1152},
                                           {"num_hidden_layers", 26},
                                           {"intermediate_size", 6912},
                                           {"num_attention_heads", 4},
                                           {"head_dim", 256},
                                           {"rms_norm_eps", 1e-6},
                                           {"vocab_size", 262144},
                                           {"num_key_value_heads", 1}}));
  decoder.tied = false;
  decoder.qk_norm = true;
  decoder.scale = scale_of(config, 256);
  const int window = config.count_or("sliding_window", 512);
  int pattern = config.count_or("sliding_window_pattern", 6);
  double global_base = config.number_or("rope_theta", 1e6), local_base = config.number_or("rope_local_base_freq", 1e4);
  auto scaling = rope_scaling(config);
  // mlx_lm reads none of what transformers 5 writes instead. It is read here where mlx_lm could not run the model without it.
  if (pattern > decoder.layers && !config.has("sliding_window_pattern") && config.has("layer_types")) {
    pattern = sliding_window_pattern(config, decoder.layers, pattern);
    if (!config.has("rope_theta") && config.has("rope_parameters")) {
      std::tie(global_base, scaling) = nested_positions(config, "full_attention", "rope_theta");
      local_base = nested_positions(config, "sliding_attention", "rope_local_base_freq").first;
      config.settle("rope_scaling", scaling);
    }
  }
  const auto global = make_rope(decoder.head_dim, global_base, false, scaling, config.count_or("max_position_embeddings", 32768));
  const auto local = make_rope(decoder.head_dim, local_base, false, nullptr, 0);
  if (pattern > decoder.layers)
    fail("model", "config.json: \"sliding_window_pattern\" {} exceeds \"num_hidden_layers\" {}, and mlx_lm runs no such model", pattern,
         decoder.layers);
  auto spec = decoder.build("gemma3_text", global, [&](Layer& layer) {
    if ((layer.index + 1) % pattern == 0) return;
    layer.attention.rope = local;
    layer.attention.window = window;
  });
  spec.head_if_present = true;
  // mlx_lm rounds this one to bf16 whatever the compute dtype.
  spec.embedding_multiplier = static_cast<float>(mlx::core::bfloat16_t(std::sqrt(static_cast<float>(decoder.hidden))));
  return spec;
}

}  // namespace lquant::model::family
