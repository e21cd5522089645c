// Mamba-2 (arXiv 2405.21060): a norm and a mixer a layer, and nothing else. The layers' norms have an eps of their own in mlx_lm, whatever
// config.json says.
#include "model/family/family.h"
#include "model/family/state_space.h"

namespace lquant::model::family {

ModelSpec mamba2(const Config& config) {
  auto decoder = Decoder::read(config, {.intermediate = nullptr, .heads = nullptr, .head_dim = nullptr, .eps = "layer_norm_epsilon"});
  decoder.read_tie(config, false);
  auto& names = decoder.names;
  names.embedding = "backbone.embeddings", names.final_norm = "backbone.norm_f", names.layers = "backbone.layers.";
  Mamba2Sizes sizes;
  sizes.hidden = decoder.hidden;
  sizes.heads = config.count("num_heads"), sizes.head_dim = config.count("head_dim"), sizes.groups = config.count("n_groups");
  sizes.state = config.has("ssm_state_size") ? config.count("ssm_state_size") : config.count("state_size");
  sizes.taps = config.count("conv_kernel");
  sizes.input_bias = sizes.output_bias = config.flag("use_bias");
  sizes.taps_bias = config.flag("use_conv_bias");
  sizes.limits = time_step_limit(config, kNoTimeLimit, true);
  // mlx_lm opens no model without these, which transformers does not write.
  if (!config.has("state_size")) config.settle("state_size", sizes.state);
  if (!config.has("intermediate_size")) config.settle("intermediate_size", sizes.inner());
  if (!config.has("time_step_rank")) config.settle("time_step_rank", "auto");
  if (!config.has("tie_word_embeddings") && !config.is_null("tie_word_embeddings")) config.settle("tie_word_embeddings", false);

  auto spec = decoder.outer("mamba2");
  for (int i = 0; i < decoder.layers; ++i) {
    const auto prefix = decoder.prefix + names.layers + std::to_string(i) + ".";
    auto mixer = mamba2_mixer(i, prefix + "mixer.", sizes, spec.imports);
    mixer.norm = rms_norm_over(prefix + "mixer.norm", sizes.inner(), decoder.eps);
    BlockSpec block;
    block.steps = {{.branches = {{.before = rms_norm_over(prefix + "norm", decoder.hidden, 1e-5f), .op = std::make_shared<const Mamba2>(mixer)}}}};
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace lquant::model::family
