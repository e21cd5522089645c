// Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the text part of Gemma 3 (arXiv 2503.19786): norms with weight 1 + w, from Gemma 2 on on
// both sides of each sub-layer, and embeddings times sqrt(hidden). The activation is GELU, in Gemma 1 the exact one as in mlx_lm (Hugging Face runs
// its tanh form there, as in the others). Gemma 2 caps scores and logits softly; mlx_lm gives all its layers the whole context. Gemma 3 norms q and
// k and alternates local layers, with a rope base of their own, with global ones.
#include <mlx/types/bf16.h>

#include <cmath>
#include <tuple>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/gguf.h"

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

void gelu_of_gemma(nlohmann::json& config) {
  config.erase("hidden_act");
  config["hidden_activation"] = "gelu_pytorch_tanh";
}

/// Scores are scaled by the head's size, in the models of 27 thousand million parameters by the width over the heads. No others have their number of
/// layers, by which llama.cpp tells them too.
void scale_of_gemma(nlohmann::json& config, int layers_of_largest) {
  const bool largest = config["num_hidden_layers"] == layers_of_largest;
  config["query_pre_attn_scalar"] =
      largest ? config["hidden_size"].get<int>() / config["num_attention_heads"].get<int>() : config["head_dim"].get<int>();
}

void complete_gemma2(const gguf::Metadata& metadata, const gguf::Tensors&, nlohmann::json& config) {
  gelu_of_gemma(config);
  scale_of_gemma(config, 46);
  gguf::Fields fields(metadata, config);
  fields.number("attn_logit_softcapping", "attn_logit_softcapping", 50);
  fields.number("final_logit_softcapping", "final_logit_softcapping", 30);
  fields.count("sliding_window", "attention.sliding_window", 4096);
}

/// Every n-th layer is global; as a number, or as a list that says of each layer whether it is local.
int gguf_pattern(const gguf::Metadata& metadata, int layers) {
  const auto key = metadata.key("attention.sliding_window_pattern");
  constexpr int kUsual = 6;  // of all published models
  try {
    return metadata.count(key).value_or(kUsual);
  } catch (const Error&) {
    const auto local = metadata.numbers(key).value_or(std::vector<double>{});
    for (int n = 1; n <= layers; ++n) {
      bool fits = static_cast<int>(local.size()) == layers;
      for (int i = 0; fits && i < layers; ++i) fits = (local[static_cast<std::size_t>(i)] != 0) == ((i + 1) % n != 0);
      if (fits) return n;
    }
    fail("model", "{}: its {} is no regular pattern, which mlx_lm cannot run", metadata.file().string(), key);
  }
}

void complete_gemma3(const gguf::Metadata& metadata, const gguf::Tensors&, nlohmann::json& config) {
  gelu_of_gemma(config);
  scale_of_gemma(config, 62);
  gguf::Fields fields(metadata, config);
  fields.number("rope_local_base_freq", "rope.freq_base_swa", 10000);
  const int window = fields.count("sliding_window", "attention.sliding_window", 0);
  config["sliding_window_pattern"] = window == 0 ? 1 : gguf_pattern(metadata, config["num_hidden_layers"]);  // 1: every layer is global
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

gguf::Architecture gemma_gguf() {
  return {.name = "gemma",
          .model_type = "gemma",
          .class_name = "GemmaForCausalLM",
          .block = rows::join({rows::kAttention, rows::changed(gguf::Change::plus_one, {rows::kNorms}), rows::kMlp}),
          .final_norm = gguf::Change::plus_one,
          .complete = [](const auto&, const auto&, auto& config) { gelu_of_gemma(config); }};
}

gguf::Architecture gemma2_gguf() {
  return {.name = "gemma2",
          .model_type = "gemma2",
          .class_name = "Gemma2ForCausalLM",
          .block = rows::join({rows::kAttention, rows::changed(gguf::Change::plus_one, {rows::kSandwichNorms}), rows::kMlp}),
          .final_norm = gguf::Change::plus_one,
          .complete = complete_gemma2};
}

gguf::Architecture gemma3_gguf() {
  return {.name = "gemma3",
          .model_type = "gemma3_text",
          .class_name = "Gemma3ForCausalLM",
          .block = rows::join({rows::kAttention, rows::changed(gguf::Change::plus_one, {rows::kHeadNorms, rows::kSandwichNorms}), rows::kMlp}),
          .final_norm = gguf::Change::plus_one,
          .complete = complete_gemma3};
}

}  // namespace lquant::model::family
