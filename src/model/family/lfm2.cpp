// LFM2 (arXiv 2511.23404): gated short convolutions in most layers, attention with norms over each head of q and k in the others. The norm before the
// head is called embedding_norm; the head is the embedding.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/ops/short_conv.h"

namespace lquant::model::family {
namespace {

/// Numbers of the layers that have attention.
std::vector<int> attention_layers(const Config& config, int layers) {
  std::vector<int> all;
  if (config.has("full_attn_idxs")) {
    all = config.counts("full_attn_idxs");
  } else {
    const auto types = config.texts("layer_types", layers);
    for (int i = 0; i < layers; ++i)
      if (types[i] == "full_attention") all.push_back(i);
  }
  const auto has = [&](int layer) { return std::find(all.begin(), all.end(), layer) != all.end(); };
  int convolutions = 0;
  for (int i = 0; i < layers; ++i) convolutions += has(i) ? 0 : 1;
  if (all.empty() || all.front() < 0 || all.front() >= layers || convolutions == 0)
    fail("model", "config.json: of {} layers {} have a convolution; mlx_lm runs an LFM2 with layers of both kinds alone; {}", layers, convolutions,
         kMend);
  return all;
}

int mlp_width(const Config& config) {
  int width = config.has("block_ff_dim") ? config.count("block_ff_dim") : config.count("intermediate_size");
  if (!config.flag("block_auto_adjust_ff_dim")) return width;
  width = static_cast<int>(2.0 * width / 3);
  const double factor = config.has("block_ffn_dim_multiplier") ? config.number("block_ffn_dim_multiplier") : 1;
  if (!(factor > 0 && factor * width < 1e9)) fail("model", "config.json: \"block_ffn_dim_multiplier\" is {}; {}", factor, kMend);
  width = static_cast<int>(factor * width);
  const int multiple = config.count("block_multiple_of");
  return std::max(1, (width + multiple - 1) / multiple) * multiple;
}

}  // namespace

ModelSpec lfm2(const Config& config) {
  auto decoder = Decoder::read(config, {.intermediate = nullptr, .head_dim = nullptr, .eps = "norm_eps"});
  decoder.intermediate = mlp_width(config);
  decoder.qk_norm = true;
  auto& names = decoder.names;
  names.final_norm = "model.embedding_norm";
  names.attention_norm = "operator_norm", names.mlp_norm = "ffn_norm";
  names.q_norm = "self_attn.q_layernorm", names.k_norm = "self_attn.k_layernorm", names.o = "self_attn.out_proj";
  names.gate = "feed_forward.w1", names.up = "feed_forward.w3", names.down = "feed_forward.w2";
  // mlx_lm demands it, transformers 5 does not write it.
  if (!config.has("block_dim")) config.settle("block_dim", decoder.hidden);
  if (const int width = config.count_or("block_dim", decoder.hidden); width != decoder.hidden)
    fail("model", "config.json: \"block_dim\" {} is not \"hidden_size\" {}; {}", width, decoder.hidden, kMend);

  const int taps = config.count("conv_L_cache", 2);
  const bool bias = config.flag("conv_bias");
  config.count("max_position_embeddings");
  const auto nested = config.value("rope_parameters");
  const bool in_nested = nested.is_object() && nested.contains("rope_theta");
  const double theta = in_nested ? Config(nested).number("rope_theta") : config.number_or("rope_theta", 1e6);
  const auto attention = attention_layers(config, decoder.layers);
  Imports imports;
  auto spec = decoder.build("lfm2", make_rope(decoder.head_dim, theta, false, nullptr, 0), [&](Layer& layer) {
    if (std::find(attention.begin(), attention.end(), layer.index) != attention.end()) return;
    const auto path = layer.prefix + "conv.";
    const int width = decoder.hidden;
    ShortConv conv;
    conv.input = block_linear(layer.index, path + "in_proj", Role::other, 3 * width, width, bias);
    for (int part = 0; part < 3; ++part) conv.input.parts.push_back(Part::piece(Role::other, part * width, width));
    conv.taps = {path + "conv.weight", {width, taps, 1}};
    if (bias) conv.bias = ParameterSpec{path + "conv.bias", {width}};
    conv.output = block_linear(layer.index, path + "out_proj", Role::other, width, width, bias);
    // [width, 1, taps] in the original files: the same numbers in the same order.
    imports.rows.push_back({conv.taps.path, {conv.taps.path}, {{.kind = Change::Kind::reshape, .shape = conv.taps.shape}}});
    layer.mixer = std::make_shared<const ShortConv>(conv);
  });
  spec.imports = imports;
  return spec;
}

}  // namespace lquant::model::family
