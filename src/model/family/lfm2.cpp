// LFM2 (arXiv 2511.23404): gated short convolutions in most layers, attention with norms over each head of q and k in the others. The norm before the
// head is called embedding_norm; the head is the embedding. The larger ones have mixtures of experts behind their first layers.
#include <algorithm>
#include <functional>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/family/state_space.h"
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

Decoder decoder_of(const Config& config) {
  auto decoder = Decoder::read(config, {.intermediate = nullptr, .head_dim = nullptr, .eps = "norm_eps"});
  decoder.qk_norm = true;
  auto& names = decoder.names;
  names.final_norm = "model.embedding_norm";
  names.attention_norm = "operator_norm", names.mlp_norm = "ffn_norm";
  names.q_norm = "self_attn.q_layernorm", names.k_norm = "self_attn.k_layernorm", names.o = "self_attn.out_proj";
  return decoder;
}

/// Convolutions in the layers without attention; `change` is what a family does to a layer beside that.
ModelSpec built(const Config& config, const Decoder& decoder, const std::string& family, const std::function<void(Layer&, Imports&)>& change) {
  const int taps = config.count("conv_L_cache", 2);
  const bool bias = config.flag("conv_bias");
  config.count("max_position_embeddings");
  const auto nested = config.value("rope_parameters");
  const bool in_nested = nested.is_object() && nested.contains("rope_theta");
  const double theta = in_nested ? Config(nested).number("rope_theta") : config.number_or("rope_theta", 1e6);
  const auto attention = attention_layers(config, decoder.layers);
  Imports imports;
  auto spec = decoder.build(family, make_rope(decoder.head_dim, theta, false, nullptr, 0), [&](Layer& layer) {
    if (change) change(layer, imports);
    if (std::find(attention.begin(), attention.end(), layer.index) != attention.end()) return;
    const auto path = layer.prefix + "conv.";
    const int width = decoder.hidden;
    ShortConv conv;
    conv.input = block_linear(layer.index, path + "in_proj", Role::other, 3 * width, width, bias);
    for (int part = 0; part < 3; ++part) conv.input.parts.push_back(Part::piece(Role::other, part * width, width));
    conv.taps = {path + "conv.weight", {width, taps, 1}};
    if (bias) conv.bias = ParameterSpec{path + "conv.bias", {width}};
    conv.output = block_linear(layer.index, path + "out_proj", Role::other, width, width, bias);
    imports.rows.push_back(reshaped(conv.taps));
    layer.mixer = std::make_shared<const ShortConv>(conv);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace

ModelSpec lfm2(const Config& config) {
  auto decoder = decoder_of(config);
  decoder.intermediate = mlp_width(config);
  auto& names = decoder.names;
  names.gate = "feed_forward.w1", names.up = "feed_forward.w3", names.down = "feed_forward.w2";
  // mlx_lm demands it, transformers 5 does not write it.
  if (!config.has("block_dim")) config.settle("block_dim", decoder.hidden);
  if (const int width = config.count_or("block_dim", decoder.hidden); width != decoder.hidden)
    fail("model", "config.json: \"block_dim\" {} is not \"hidden_size\" {}; {}", width, decoder.hidden, kMend);
  return built(config, decoder, "lfm2", nullptr);
}

ModelSpec lfm2_moe(const Config& config) {
  auto decoder = decoder_of(config);
  decoder.intermediate = config.count("intermediate_size");
  auto& names = decoder.names;
  names.gate = "feed_forward.gate_proj", names.up = "feed_forward.up_proj", names.down = "feed_forward.down_proj";
  auto mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  mixture.stacks = "feed_forward.switch_mlp.", mixture.singles = "feed_forward.experts.";
  mixture.single_gate = "w1", mixture.single_up = "w3", mixture.single_down = "w2";
  const int dense = config.count("num_dense_layers", 0);
  const bool corrected = config.flag("use_expert_bias"), normalize = config.flag("norm_topk_prob");
  const auto factor = static_cast<float>(config.number_or("routed_scaling_factor", 1));
  return built(config, decoder, "lfm2_moe", [&](Layer& layer, Imports& imports) {
    if (layer.index < dense) {
      const auto path = layer.prefix + "feed_forward.";
      for (const auto& [ours, theirs] : {std::pair{"gate_proj", "w1"}, {"up_proj", "w3"}, {"down_proj", "w2"}})
        imports.rows.push_back({path + ours, {path + theirs}});
      return;
    }
    auto op = experts_of(layer, decoder.hidden, mixture, "feed_forward.gate", imports);
    auto& router = op.router;
    router.linear.fixed_format = kRouterFormat;
    router.score = Router::Score::sigmoid;
    if (corrected) router.correction = ParameterSpec{layer.prefix + "feed_forward.expert_bias", {mixture.experts}, true};
    router.normalize = normalize;
    router.epsilon = 1e-6f;
    router.factor = factor;
    layer.mlp = std::make_shared<const Experts>(op);
  });
}

}  // namespace lquant::model::family
