// Nemotron-H (arXiv 2504.03624) and Nemotron 3: one op a block, as a pattern of letters says: Mamba-2, attention without positions, an MLP of relu²,
// or a mixture of such beside experts that every token meets, with latents between model and experts in the largest.
#include <map>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/family/state_space.h"
#include "model/ops/plain_mlp.h"

namespace lquant::model::family {
namespace {

/// A letter a block. mlx_lm counts the blocks, whatever "num_hidden_layers" says.
std::string pattern_of(const Config& config) {
  static const std::map<std::string, char> letters = {
      {"full_attention", '*'}, {"linear_attention", 'M'}, {"moe", 'E'}, {"mlp", '-'}, {"attention", '*'}, {"mamba", 'M'}, {"conv", 'M'}};
  std::string pattern;
  const auto given = config.value("hybrid_override_pattern");
  if (given.is_string()) {
    pattern = given.get<std::string>();
  } else if (given.is_array()) {
    for (const auto& letter : config.texts("hybrid_override_pattern", 0)) pattern += letter;
  } else {
    const char* key = config.has("layers_block_type") ? "layers_block_type" : "layer_types";
    for (const auto& kind : config.texts(key, 0)) {
      const auto letter = letters.find(kind);
      pattern += letter == letters.end() ? '?' : letter->second;
    }
  }
  if (pattern.empty() || pattern.size() > 10000 || pattern.find_first_not_of("M*-E") != std::string::npos)
    fail("model", "config.json: the blocks \"{}\" are not all Mamba (M), attention (*), an MLP (-) or a mixture (E); {}", shown(pattern), kMend);
  for (const char letter : {'M', '*'})
    if (pattern.find(letter) == std::string::npos)
      fail("model", "config.json: no block of the pattern \"{}\" is {}, without which mlx_lm does not run a Nemotron-H", shown(pattern),
           letter == 'M' ? "Mamba (M)" : "attention (*)");
  return pattern;
}

std::shared_ptr<const Op> plain_mlp(const Layer& layer, const std::string& path, int hidden, int width, bool bias) {
  PlainMlp mlp;
  mlp.activation = kernels::Activation::relu2;
  mlp.up = block_linear(layer.index, layer.prefix + path + "up_proj", Role::up, width, hidden, bias);
  mlp.down = block_linear(layer.index, layer.prefix + path + "down_proj", Role::down, hidden, width, bias);
  return std::make_shared<const PlainMlp>(mlp);
}

std::shared_ptr<const Op> experts(const Config& config, const Layer& layer, int hidden, bool bias, Imports& imports) {
  auto mixture = Mixture::read(config, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  mixture.stacks = "mixer.switch_mlp.", mixture.singles = "mixer.experts.";
  mixture.gate = "", mixture.up = "fc1", mixture.down = "fc2", mixture.single_up = "up_proj", mixture.single_down = "down_proj";
  const int latents = config.count_or_none("moe_latent_size");
  auto op = experts_of(layer, latents > 0 ? latents : hidden, mixture, "mixer.gate", imports);
  op.activation = kernels::Activation::relu2;
  auto& router = op.router;
  router.linear.in = hidden;
  router.linear.dense_why = kBareRouter;
  router.score = Router::Score::sigmoid;
  router.f32 = true;
  router.correction = ParameterSpec{layer.prefix + "mixer.gate.e_score_correction_bias", {mixture.experts}, true};
  router.groups.count = config.count("n_group");
  router.groups.kept = config.count("topk_group");
  if (mixture.experts % router.groups.count != 0 || router.groups.kept > router.groups.count)
    fail("model", "config.json: of {} experts in {} groups {} cannot be kept; {}", mixture.experts, router.groups.count, router.groups.kept, kMend);
  router.normalize = mixture.top_k > 1 && config.flag_or("norm_topk_prob", false);
  router.epsilon = 1e-20f;
  router.factor = static_cast<float>(config.number("routed_scaling_factor"));
  if (latents > 0) {
    op.into = block_linear(layer.index, layer.prefix + "mixer.fc1_latent_proj", Role::other, latents, hidden, bias);
    op.out_of = block_linear(layer.index, layer.prefix + "mixer.fc2_latent_proj", Role::other, hidden, latents, bias);
  }
  return std::make_shared<const Experts>(op);
}

}  // namespace

ModelSpec nemotron_h(const Config& given) {
  const auto pattern = pattern_of(given);
  const auto config = given.filled({{"num_hidden_layers", static_cast<int>(pattern.size())}});
  auto decoder = Decoder::read(config, {.eps = "layer_norm_epsilon"});
  decoder.layers = static_cast<int>(pattern.size());
  decoder.tied = false;
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  auto& names = decoder.names;
  names.embedding = "backbone.embeddings", names.final_norm = "backbone.norm_f", names.layers = "backbone.layers.";
  names.attention_norm = "norm", names.q = "mixer.q_proj", names.k = "mixer.k_proj", names.v = "mixer.v_proj", names.o = "mixer.o_proj";
  const bool bias = config.flag("mlp_bias");
  config.count("max_position_embeddings");
  Mamba2Sizes sizes;
  sizes.hidden = decoder.hidden;
  sizes.heads = config.count("mamba_num_heads"), sizes.head_dim = config.count("mamba_head_dim"), sizes.groups = config.count("n_groups");
  sizes.state = config.count("ssm_state_size"), sizes.taps = config.count("conv_kernel");
  sizes.input_bias = sizes.output_bias = config.flag("mamba_proj_bias");
  sizes.taps_bias = config.flag("use_conv_bias");
  sizes.limits = time_step_limit(config, kNoTimeLimit);
  if (!config.has("use_bias")) config.settle("use_bias", false);  // of no use, but mlx_lm opens no model without it

  auto spec = decoder.outer("nemotron_h");
  for (int i = 0; i < decoder.layers; ++i) {
    const auto layer = decoder.layer(i, std::nullopt);
    Step step;
    step.before = layer.attention_norm;
    switch (pattern[i]) {
      case 'M': {
        auto mixer = mamba2_mixer(i, layer.prefix + "mixer.", sizes, spec.imports);
        mixer.norm = rms_norm_over(layer.prefix + "mixer.norm", sizes.inner(), decoder.eps);
        mixer.norm->groups = sizes.groups;
        mixer.recurrence.a_log.keeps_dtype = true;
        step.branches = {{.op = std::make_shared<const Mamba2>(mixer)}};
        break;
      }
      case '*':
        step.branches = {{.op = std::make_shared<const Attention>(layer.attention)}};
        break;
      case '-':
        step.branches = {{.op = plain_mlp(layer, "mixer.", decoder.hidden, decoder.intermediate, bias)}};
        break;
      default:
        step.branches = {{.op = experts(config, layer, decoder.hidden, bias, spec.imports)}};
        if (config.has("n_shared_experts")) {
          const int width = config.count_or_none("moe_shared_expert_intermediate_size", 0);
          step.branches.push_back({.op = plain_mlp(layer, "mixer.shared_experts.", decoder.hidden, width > 0 ? width : decoder.intermediate, bias)});
        }
    }
    BlockSpec block;
    block.steps = {std::move(step)};
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace lquant::model::family
