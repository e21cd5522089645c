// Falcon H1 (arXiv 2507.22448): Mamba-2 and attention side by side read one norm, and both are added. The multipliers of muP are in the weights of
// mlx_lm's files and in the config of Hugging Face's, whose taps in torch's layout tell: there the import multiplies. As in mlx_lm, key_multiplier is
// not applied, nor attention_in_multiplier to values, nor any to a bias.
#include "base/error.h"
#include "model/family/family.h"
#include "model/family/state_space.h"
#include "model/ops/gated_mlp.h"

namespace lquant::model::family {
namespace {

const nlohmann::json& defaults() {
  static const nlohmann::json fields = {{"hidden_size", 1024},
                                        {"intermediate_size", 2048},
                                        {"num_hidden_layers", 36},
                                        {"num_attention_heads", 8},
                                        {"num_key_value_heads", 2},
                                        {"head_dim", 64},
                                        {"vocab_size", 32784},
                                        {"rms_norm_eps", 1e-5},
                                        {"max_position_embeddings", 131072},
                                        {"tie_word_embeddings", true},
                                        {"attention_bias", false},
                                        {"mlp_bias", false},
                                        {"projectors_bias", false},
                                        {"rope_theta", 1e11},
                                        {"rope_traditional", false},
                                        {"mamba_d_conv", 4},
                                        {"mamba_d_head", 64},
                                        {"mamba_d_ssm", 1536},
                                        {"mamba_d_state", 128},
                                        {"mamba_n_groups", 1},
                                        {"mamba_n_heads", 24},
                                        {"mamba_conv_bias", true},
                                        {"mamba_proj_bias", false},
                                        {"mamba_rms_norm", false},
                                        {"mamba_norm_before_gate", false},
                                        {"embedding_multiplier", 5.656854249492381},
                                        {"lm_head_multiplier", 0.0390625},
                                        {"attention_in_multiplier", 1.0},
                                        {"attention_out_multiplier", 0.9375},
                                        {"ssm_in_multiplier", 1.25},
                                        {"ssm_out_multiplier", 0.23570226039551587},
                                        {"mlp_multipliers", {0.8838834764831844, 0.5859375}},
                                        {"ssm_multipliers", {0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738}}};
  return fields;
}

/// Rows that multiply a weight where the checkpoint's taps are in torch's layout.
class Multipliers {
 public:
  explicit Multipliers(Imports& imports) : imports_(imports) {}
  void told_by(const ParameterSpec& taps) {
    // A single tap looks alike in both layouts, and mlx_lm takes it for its own.
    if (taps.shape[1] > 1) torch_ = Sign{taps.path, -1, taps.shape[1]};
  }
  void multiply(const LinearSpec& linear, double factor, std::vector<std::pair<int, float>> parts = {}) {
    if (!torch_) return;
    const auto name = linear.path + ".weight";
    Change change{.kind = Change::Kind::multiply, .factor = static_cast<float>(factor), .parts = std::move(parts)};
    imports_.rows.push_back({.target = name, .sources = {name}, .changes = {std::move(change)}, .where = torch_});
  }

 private:
  Imports& imports_;
  std::optional<Sign> torch_;
};

}  // namespace

ModelSpec falcon_h1(const Config& given) {
  const auto config = given.filled(defaults());
  auto decoder = Decoder::read(config);
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  decoder.mlp_bias = config.flag("mlp_bias");
  auto& names = decoder.names;
  names.final_norm = "model.final_layernorm", names.mlp_norm = "pre_ff_layernorm";
  names.gate = "feed_forward.gate_proj", names.up = "feed_forward.up_proj", names.down = "feed_forward.down_proj";
  const auto rope = make_rope(decoder.head_dim, config.number("rope_theta"), config.flag("rope_traditional"), rope_scaling(config),
                              config.count("max_position_embeddings"));
  Mamba2Sizes sizes;
  sizes.hidden = decoder.hidden;
  sizes.heads = config.count("mamba_n_heads"), sizes.head_dim = config.count("mamba_d_head"), sizes.groups = config.count("mamba_n_groups");
  sizes.state = config.count("mamba_d_state"), sizes.taps = config.count("mamba_d_conv");
  sizes.input_bias = config.flag("mamba_proj_bias"), sizes.taps_bias = config.flag("mamba_conv_bias");
  sizes.output_bias = config.flag("projectors_bias");
  if (const int inner = config.count("mamba_d_ssm"); std::int64_t{1} * sizes.heads * sizes.head_dim != inner)
    fail("model", "config.json: \"mamba_d_ssm\" {} is not {} heads of {}; {}", inner, sizes.heads, sizes.head_dim, kMend);
  const bool normed = config.flag("mamba_rms_norm"), norm_first = config.flag("mamba_norm_before_gate");

  const double attention_in = config.number("attention_in_multiplier"), attention_out = config.number("attention_out_multiplier");
  const double ssm_in = config.number("ssm_in_multiplier"), ssm_out = config.number("ssm_out_multiplier");
  const auto of_mlp = config.numbers("mlp_multipliers", 2), of_parts = config.numbers("ssm_multipliers", 5);
  const int widths[] = {sizes.inner(), sizes.inner(), sizes.groups * sizes.state, sizes.groups * sizes.state, sizes.heads};
  std::vector<std::pair<int, float>> parts;
  for (int part = 0; part < 5; ++part) parts.emplace_back(widths[part], static_cast<float>(of_parts[part]));

  auto spec = decoder.outer("falcon_h1");
  Multipliers multipliers(spec.imports);
  for (int i = 0; i < decoder.layers; ++i) {
    const auto layer = decoder.layer(i, rope);
    auto mixer = mamba2_mixer(i, layer.prefix + "mamba.", sizes, spec.imports);
    if (normed) mixer.norm = rms_norm_over(layer.prefix + "mamba.norm", sizes.inner(), decoder.eps);
    mixer.gate_behind_norm = norm_first;
    const auto& mlp = dynamic_cast<const GatedMlp&>(*layer.mlp);
    if (i == 0) multipliers.told_by(mixer.taps);
    multipliers.multiply(mixer.input, ssm_in, parts);
    multipliers.multiply(mixer.output, ssm_out);
    multipliers.multiply(layer.attention.inputs[0], attention_in);
    multipliers.multiply(layer.attention.inputs[1], attention_in);
    multipliers.multiply(layer.attention.output, attention_out);
    multipliers.multiply(mlp.inputs[0], of_mlp[0]);
    multipliers.multiply(mlp.down, of_mlp[1]);
    BlockSpec block;
    block.steps = {{.before = layer.attention_norm,
                    .branches = {{.op = std::make_shared<const Mamba2>(mixer)}, {.op = std::make_shared<const Attention>(layer.attention)}}},
                   {.branches = {{.before = layer.mlp_norm, .op = layer.mlp}}}};
    spec.blocks.push_back(std::move(block));
  }
  const double of_embedding = config.number("embedding_multiplier"), of_head = config.number("lm_head_multiplier");
  multipliers.multiply(spec.embedding, of_embedding);
  if (spec.head) {
    multipliers.multiply(*spec.head, of_head);
  } else {
    if (of_embedding == 0) fail("model", "config.json: \"embedding_multiplier\" is 0, and logits are divided by it; {}", kMend);
    spec.logit_multiplier = static_cast<float>(of_head / of_embedding);
  }
  return spec;
}

}  // namespace lquant::model::family
