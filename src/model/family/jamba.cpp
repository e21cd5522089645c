// Jamba (arXiv 2403.19887): Mamba with norms on dt, B and C, an attention without positions every few layers; an MLP, every few layers as a mixture.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/family/state_space.h"

namespace lquant::model::family {
namespace {

std::vector<std::string> kinds_of(const Config& config, int layers) {
  std::vector<std::string> kinds;
  const int period = config.count("attn_layer_period"), offset = config.count("attn_layer_offset", 0);
  if (config.has("layers_block_type"))
    kinds = layer_kinds(config, "layers_block_type", layers);
  else
    for (int i = 0; i < layers; ++i) kinds.emplace_back(i % period == offset ? "attention" : "mamba");
  for (const char* kind : {"attention", "mamba"})
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end())
      fail("model", "config.json: none of {} layers is of kind \"{}\", without which mlx_lm does not run a Jamba; {}", layers, kind, kMend);
  return kinds;
}

}  // namespace

ModelSpec jamba(const Config& config) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.require_even_heads();
  decoder.read_tie(config, true);
  auto& names = decoder.names;
  names.final_norm = "model.final_layernorm", names.mlp_norm = "pre_ff_layernorm";
  names.gate = "feed_forward.gate_proj", names.up = "feed_forward.up_proj", names.down = "feed_forward.down_proj";
  const auto kinds = kinds_of(config, decoder.layers);
  config.count("max_position_embeddings");
  MambaSizes sizes;
  sizes.hidden = decoder.hidden;
  const int factor = config.count("mamba_expand");
  if (std::int64_t{1} * factor * decoder.hidden > std::numeric_limits<int>::max() / 8)
    fail("model", "config.json: \"mamba_expand\" {} is too large; {}", factor, kMend);
  sizes.inner = factor * decoder.hidden;
  sizes.rank = time_step_rank(config, "mamba_dt_rank", decoder.hidden);
  sizes.state = config.count("mamba_d_state"), sizes.taps = config.count("mamba_d_conv");
  sizes.bias = config.flag_or("mamba_proj_bias", false), sizes.taps_bias = config.flag_or("mamba_conv_bias", true);
  Mixture mixture;
  if (config.count("num_experts") > 1) mixture = Mixture::read(config, "num_experts", "num_experts_per_tok", "intermediate_size");
  mixture.stacks = "feed_forward.switch_mlp.", mixture.singles = "feed_forward.experts.";
  const int period = config.count("expert_layer_period"), offset = config.count("expert_layer_offset", 0);

  Imports imports;
  auto spec = decoder.build("jamba", std::nullopt, [&](Layer& layer) {
    if (kinds[layer.index] == "mamba") {
      const auto path = layer.prefix + "mamba.";
      auto mixer = mamba_mixer(layer.index, path, sizes, imports);
      mixer.dt_norm = rms_norm_over(path + "dt_layernorm", sizes.rank, decoder.eps);
      mixer.b_norm = rms_norm_over(path + "b_layernorm", sizes.state, decoder.eps);
      mixer.c_norm = rms_norm_over(path + "c_layernorm", sizes.state, decoder.eps);
      layer.mixer = std::make_shared<const Mamba>(mixer);
    }
    if (mixture.experts < 2 || (layer.index + offset) % period != 0) return;
    auto op = experts_of(layer, decoder.hidden, mixture, "feed_forward.router", imports);
    op.router.score = Router::Score::softmax_chosen;
    op.router.linear.fixed_format = kRouterFormat;
    layer.mlp = std::make_shared<const Experts>(op);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
