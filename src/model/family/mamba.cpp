// Mamba (arXiv 2312.00752) and Falcon Mamba (arXiv 2410.05355), which norms dt, B and C: a norm and a mixer a layer, and nothing else. All norms have
// an eps of their own in mlx_lm, whatever config.json says.
#include "model/family/family.h"
#include "model/family/state_space.h"

namespace lquant::model::family {

ModelSpec mamba(const Config& given) {
  constexpr float kEps = 1e-5f;
  const auto config = given.filled({{"tie_word_embeddings", true}, {"mixer_rms_eps", 1e-6}, {"use_bcdt_rms", false}});
  Decoder decoder;
  decoder.prefix = config.prefix();
  decoder.hidden = config.count("hidden_size"), decoder.layers = config.count("num_hidden_layers"), decoder.vocab = config.count("vocab_size");
  decoder.eps = kEps;
  decoder.read_tie(config, true);
  auto& names = decoder.names;
  names.embedding = "backbone.embeddings", names.final_norm = "backbone.norm_f", names.layers = "backbone.layers.";
  MambaSizes sizes;
  sizes.hidden = decoder.hidden, sizes.inner = config.count("intermediate_size"), sizes.state = config.count("state_size");
  sizes.rank = time_step_rank(config, "time_step_rank", decoder.hidden);
  sizes.taps = config.count("conv_kernel");
  sizes.bias = config.flag("use_bias"), sizes.taps_bias = config.flag("use_conv_bias");
  const bool normed = config.flag("use_bcdt_rms") || config.text("model_type") == "falcon_mamba";
  const auto eps = static_cast<float>(config.number("mixer_rms_eps"));

  auto spec = decoder.outer("mamba");
  for (int i = 0; i < decoder.layers; ++i) {
    const auto prefix = decoder.prefix + names.layers + std::to_string(i) + ".";
    auto mixer = mamba_mixer(i, prefix + "mixer.", sizes, spec.imports);
    if (normed) {
      mixer.dt_norm = rms_norm_over("", sizes.rank, eps, false);
      mixer.b_norm = mixer.c_norm = rms_norm_over("", sizes.state, eps, false);
    }
    BlockSpec block;
    block.steps = {{.branches = {{.before = rms_norm_over(prefix + "norm", decoder.hidden, kEps), .op = std::make_shared<const Mamba>(mixer)}}}};
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace lquant::model::family
