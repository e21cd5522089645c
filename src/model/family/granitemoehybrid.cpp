// Granite 4: Granite with Mamba-2 in the place of most attentions; an MLP, or a mixture beside an MLP that every token meets. Hugging Face keeps gate
// and up in one tensor, which mlx_lm takes apart where it is the only MLP and in the experts.
#include <algorithm>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/family/state_space.h"

namespace lquant::model::family {
namespace {

/// Half of each fused tensor.
void halved(const Layer& layer, int width, Imports& imports) {
  const auto from = layer.prefix + "shared_mlp.";
  int first = 0;
  for (const char* half : {"mlp.gate_proj.weight", "mlp.up_proj.weight"}) {
    imports.rows.push_back(
        {layer.prefix + half, {from + "input_linear.weight"}, {{.kind = Change::Kind::slice, .axis = 0, .first = first, .count = width}}});
    first += width;
  }
  imports.rows.push_back({layer.prefix + "mlp.down_proj.weight", {from + "output_linear.weight"}});
}

std::shared_ptr<const Op> shared_mlp(const Layer& layer, int hidden, int width) {
  GatedMlp mlp;
  mlp.inputs = {block_linear(layer.index, layer.prefix + "shared_mlp.input_linear", Role::gate_up, 2 * width, hidden)};
  mlp.inputs[0].parts = {Part::piece(Role::gate, 0, width), Part::piece(Role::up, width, width)};
  mlp.down = block_linear(layer.index, layer.prefix + "shared_mlp.output_linear", Role::down, hidden, width);
  return std::make_shared<const GatedMlp>(mlp);
}

std::shared_ptr<const Op> experts(const Layer& layer, int hidden, Mixture mixture, Imports& imports) {
  mixture.stacks = "block_sparse_moe.switch_mlp.", mixture.singles = "";
  auto op = experts_of(layer, hidden, mixture, "block_sparse_moe.router.layer", imports);
  op.router.score = Router::Score::softmax_chosen;
  op.router.linear.fixed_format = kRouterFormat;
  const auto fused = layer.prefix + "block_sparse_moe.";
  fused_experts(op, fused + "input_linear.weight", fused + "output_linear.weight", false, imports);
  return std::make_shared<const Experts>(op);
}

}  // namespace

ModelSpec granitemoehybrid(const Config& config) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.require_even_heads();
  decoder.read_tie(config, true);
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  decoder.mlp_bias = config.flag_or("mlp_bias", false);
  decoder.branch_scale = static_cast<float>(config.number("residual_multiplier"));
  decoder.scale = static_cast<float>(config.number("attention_multiplier"));
  const double divisor = config.number("logits_scaling");
  if (divisor == 0) fail("model", "config.json: \"logits_scaling\" is 0, and logits are divided by it; {}", kMend);
  const int positions = config.count("max_position_embeddings");
  const auto kinds = layer_kinds(config, "layer_types", decoder.layers);

  std::optional<RopeSpec> rope;
  // Null means none to transformers, and mlx_lm would turn the heads.
  if (config.is_null("position_embedding_type")) config.settle("position_embedding_type", "nope");
  const bool turned =
      config.has("position_embedding_type") ? config.text("position_embedding_type") != "nope" : !config.is_null("position_embedding_type");
  if (turned) {
    const auto nested = config.value("rope_parameters");
    const bool in_nested = nested.is_object() && nested.contains("rope_theta");
    const double base = in_nested ? config.child("rope_parameters").number("rope_theta") : config.number_or("rope_theta", 10000);
    rope = make_rope(decoder.head_dim, base, false, nullptr, positions);
  }
  Mamba2Sizes sizes;
  sizes.hidden = decoder.hidden;
  if (std::find(kinds.begin(), kinds.end(), "mamba") != kinds.end()) {
    sizes.heads = config.count("mamba_n_heads"), sizes.head_dim = config.count("mamba_d_head"), sizes.groups = config.count("mamba_n_groups");
    sizes.state = config.count("mamba_d_state"), sizes.taps = config.count("mamba_d_conv");
    sizes.input_bias = sizes.output_bias = config.flag_or("mamba_proj_bias", false);
    sizes.taps_bias = config.flag_or("mamba_conv_bias", false);
    sizes.limits = time_step_limit(config, {0.001, 100});
  }
  const bool dense = config.count_or_none("num_local_experts", 0) == 0;
  Mixture mixture;
  int shared = 0;
  if (!dense) {
    mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "intermediate_size");
    shared = config.count("shared_intermediate_size");
  }

  Imports imports;
  auto spec = decoder.build("granitemoehybrid", rope, [&](Layer& layer) {
    if (kinds[layer.index] == "mamba") {
      auto mixer = mamba2_mixer(layer.index, layer.prefix + "mamba.", sizes, imports);
      mixer.norm = rms_norm_over(layer.prefix + "mamba.norm", sizes.inner(), decoder.eps);
      layer.mixer = std::make_shared<const Mamba2>(mixer);
    }
    if (dense) return halved(layer, decoder.intermediate, imports);
    layer.mlp = experts(layer, decoder.hidden, mixture, imports);
    layer.shared = shared_mlp(layer, decoder.hidden, shared);
  });
  spec.imports = std::move(imports);
  spec.embedding_multiplier = static_cast<float>(config.number("embedding_multiplier"));
  spec.logit_multiplier = static_cast<float>(1 / divisor);
  return spec;
}

}  // namespace lquant::model::family
