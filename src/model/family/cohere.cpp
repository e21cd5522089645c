// Command R and R7B (Cohere, arXiv 2504.00698): attention and MLP side by side behind one layer norm, neighbouring features turn together, logits
// times a constant. Command R+ norms each head of q and k with a weight of its own. In Cohere 2 layers with a window know positions, those without
// know none.
#include "base/error.h"
#include "model/family/family.h"

namespace lquant::model::family {
namespace {

Decoder cohere_like(const Config& config, const Keys& keys) {
  auto decoder = Decoder::read(config, keys);
  decoder.always_tied(config);
  decoder.norm = NormSpec::Kind::layer;
  decoder.norm_bias = config.flag_or("layer_norm_bias", false);
  decoder.qkv_bias = decoder.o_bias = config.flag_or("attention_bias", false);
  decoder.parallel = true;
  decoder.names.mlp_norm.clear();
  return decoder;
}

}  // namespace

ModelSpec cohere(const Config& given) {
  const auto config = given.filled({{"hidden_size", 8192},
                                    {"num_hidden_layers", 40},
                                    {"intermediate_size", 22528},
                                    {"num_attention_heads", 64},
                                    {"vocab_size", 256000},
                                    {"layer_norm_eps", 1e-5}});
  auto decoder = cohere_like(config, {.head_dim = nullptr, .eps = "layer_norm_eps"});
  decoder.qk_norm = config.flag_or("use_qk_norm", false);
  auto spec = decoder.build("cohere", make_rope(decoder.head_dim, config.number_or("rope_theta", 8e6), true, nullptr, 0), [&](Layer& layer) {
    if (!decoder.qk_norm) return;
    auto& attention = layer.attention;
    attention.q_norm->rows = attention.heads;
    attention.k_norm->rows = attention.kv_heads;
    attention.q_norm->bias = attention.k_norm->bias = false;
  });
  spec.logit_multiplier = static_cast<float>(config.number_or("logit_scale", 0.0625));
  return spec;
}

ModelSpec cohere2(const Config& given) {
  const auto config = given.filled({{"hidden_size", 4096},
                                    {"head_dim", 128},
                                    {"num_hidden_layers", 32},
                                    {"intermediate_size", 14336},
                                    {"num_attention_heads", 32},
                                    {"vocab_size", 256000},
                                    {"layer_norm_eps", 1e-5}});
  const auto decoder = cohere_like(config, {.eps = "layer_norm_eps"});
  if (decoder.head_dim * decoder.heads != decoder.hidden)
    fail("model", "config.json: {} heads of {} features are not the hidden size {}, and mlx_lm runs no such model", decoder.heads, decoder.head_dim,
         decoder.hidden);
  const int window = config.count_or("sliding_window", 4096), pattern = sliding_window_pattern(config, decoder.layers, 4);
  if (pattern > decoder.layers)
    fail("model", "config.json: \"sliding_window_pattern\" {} exceeds \"num_hidden_layers\" {}, and mlx_lm runs no such model", pattern,
         decoder.layers);
  auto spec = decoder.build("cohere2", make_rope(decoder.head_dim, config.number_or("rope_theta", 50000), true, nullptr, 0), [&](Layer& layer) {
    layer.attention.wide = true;
    if ((layer.index + 1) % pattern == 0)
      layer.attention.rope.reset();
    else
      layer.attention.window = window;
  });
  spec.logit_multiplier = static_cast<float>(config.number_or("logit_scale", 0.0625));
  return spec;
}

}  // namespace lquant::model::family
