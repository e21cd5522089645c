// Muse Spark: a residual in f32 with factors for each feature; Muse Glimmer's attention in one linear, with a norm of each head's result; in every
// layer experts between latents, with a norm before them and one of each expert's result. Norms behind a sub-layer have no weight, or weigh what they
// norm. Its checkpoints have a vision tower, which is kept.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/ops/exact.h"
#include "model/ops/per_layer.h"

namespace lquant::model::family {
namespace {

constexpr const char* kLanguage = "model.language_model.";
// Numbers of mlx_lm's class that no config names: of the gates that its checkpoints store, and of a token's weights of experts.
constexpr float kGateTemperature = 0.3f, kLeastAlpha = 1e-3f, kScoreEpsilon = 1e-15f;

void refuse(const Config& config) {
  const auto kinds = config.has("mlp_layer_types") ? config.texts("mlp_layer_types", 0) : std::vector<std::string>{};
  const bool dense = std::ranges::any_of(kinds, [](const auto& kind) { return kind != "sparse"; });
  if (dense || config.truthy("num_shared_experts", false))
    fail("model", "config.json: \"{}\" asks for MLPs that every token meets, which mlx_lm does not run here; {}",
         config.place(dense ? "mlp_layer_types" : "num_shared_experts"), kMend);
}

/// Norms of published files lack the 1 that mlx_lm adds to them. Files that it has written have the factors too, and by them are known.
void centred_at_zero(const NormSpec& norm, const ResidualFactors& written, Imports& imports) {
  imports.rows.push_back({norm.path, {norm.path}, {{Change::Kind::add_one_bf16}}, written.of_residual.path});
}

/// The factors of a sub-layer, which mlx_lm makes of one gate of published files.
ResidualFactors factors_at(const std::string& path, const std::string& gate, int hidden, Imports& imports) {
  ResidualFactors factors{{path + "_alpha", {hidden}, true}, {path + "_beta", {hidden}, true}};
  Change alpha{.kind = Change::Kind::gate_alpha, .factor = kGateTemperature, .floor = kLeastAlpha}, beta = alpha;
  beta.kind = Change::Kind::gate_beta;
  imports.rows.push_back({factors.of_residual.path, {gate}, {alpha}});
  imports.rows.push_back({factors.of_branches.path, {gate}, {beta}});
  return factors;
}

/// Queries, keys, values and gates, which are apart in published files, with the halves of a head that turn together.
LinearSpec fused_inputs(const Layer& layer, const Decoder& decoder, Imports& imports) {
  const auto path = layer.prefix + "self_attn.";
  const int q = decoder.heads * decoder.head_dim, kv = decoder.kv_heads * decoder.head_dim;
  auto linear = block_linear(layer.index, path + "qkvg_proj", Role::qkv, 2 * (q + kv), decoder.hidden);
  linear.parts = parts_in_order(q, kv);
  linear.parts.push_back(Part::piece(Role::other, q + 2 * kv, q));
  imports.rows.push_back({linear.path,
                          {path + "q_proj", path + "k_proj", path + "v_proj", path + "gate_proj"},
                          {{Change::Kind::join}, {.kind = Change::Kind::interleave, .first = q + kv, .count = decoder.head_dim}}});
  leave_dense(linear);
  return linear;
}

Experts latent_experts(const Layer& layer, const Config& config, const Decoder& decoder, float post_eps, Imports& imports) {
  const auto path = layer.prefix + "mlp.";
  auto mixture = Mixture::read(config, "num_local_experts", "num_experts_per_tok", "moe_intermediate_size");
  mixture.stacks = "mlp.experts.", mixture.singles = "";
  const int latent = config.count("moe_hidden_size");
  auto op = experts_of(layer, latent, mixture, "mlp.gate", imports);
  auto& router = op.router;
  router.linear.in = decoder.hidden;
  router.linear.dense_why = kBareRouter;
  router.score = Router::Score::sigmoid;
  router.f32 = router.f32_product = router.rounded = router.normalize = true;
  router.logit_factor = static_cast<float>(config.number("output_multiplier"));
  router.correction = ParameterSpec{path + "gate.e_score_correction_bias", {mixture.experts}};
  router.epsilon = kScoreEpsilon;
  router.factor = static_cast<float>(config.number_or("routed_scaling_factor", 1));
  op.into = block_linear(layer.index, path + "pre_expert_proj", Role::other, latent, decoder.hidden);
  op.in_norm = rms_norm_over(path + "pre_expert_norm", latent, decoder.eps);
  op.expert_norm = rms_norm_over(path + "experts.post_expert_norm", latent, post_eps);
  op.expert_norm->weighs_input = true;
  op.out_of = block_linear(layer.index, path + "post_expert_proj", Role::other, decoder.hidden, latent);
  for (auto* linear : {&*op.into, &*op.out_of}) leave_dense(*linear);
  if (layer.index == 0 || layer.index == decoder.layers - 1)
    for (auto* linear : {&*op.gate, &op.up, &op.down}) leave_dense(*linear);
  fused_experts(op, path + "experts.gate_up_proj", path + "experts.down_proj", false, imports);
  return op;
}

void keep_towers(const Config& given, ModelSpec& spec) {
  spec.left_out.push_back({"model.audio_tower.*", "the audio tower, which mlx_lm does not run"});
  for (const auto& [name, what] :
       {std::pair{"vision_tower", "the vision tower"}, {"vision_adapter", "the projector"}, {"vision_projection", "the projector"}}) {
    const auto pattern = "model." + std::string(name) + ".*";
    if (given.truthy("vision_config", false))
      spec.imports.kept.push_back({pattern, what});
    else
      spec.left_out.push_back({pattern, "a part that config.json does not describe in \"vision_config\", so that mlx_lm does not run it"});
  }
}

}  // namespace

ModelSpec muse_spark(const Config& given) {
  const auto config = given.child("text_config");
  refuse(config);
  auto decoder = Decoder::read(config, {.intermediate = nullptr});
  decoder.tied = false;
  const std::string language = kLanguage;
  decoder.names = Names::sandwich();
  decoder.names.embedding = language + "embed_tokens", decoder.names.final_norm = language + "norm", decoder.names.layers = language + "layers.";
  decoder.scale = static_cast<float>(config.number_or("qk_scale_factor", 5.4730064863875)) / std::sqrt(static_cast<float>(decoder.head_dim));
  const auto post_eps = static_cast<float>(config.number("post_norm_eps"));
  const auto types = config.texts("layer_types", decoder.layers);
  const auto bases = config.numbers("layer_rope_theta", decoder.layers);
  const auto rope = make_rope(decoder.head_dim, config.child("rope_parameters").number("rope_theta"), /*interleaved=*/true, nullptr, 0);

  auto spec = decoder.outer("muse_spark");
  auto& imports = spec.imports;
  for (int i = 0; i < decoder.layers; ++i) {
    auto layer = decoder.layer(i, rope);
    auto& attention = layer.attention;
    attention.inputs = {fused_inputs(layer, decoder, imports)};
    attention.gate = OutputGate{};
    attention.q_norm = attention.k_norm = attention.result_norm = rms_norm_over("", decoder.head_dim, decoder.eps, /*weight=*/false);
    leave_dense(attention.output);
    if (types[i] == "sliding_attention") attention.window = config.count("sliding_window");
    // A base tells whether there are positions, and not how fast they turn: mlx_lm has one base for all.
    if (bases[i] == 0) attention.rope.reset();
    const auto mixture = latent_experts(layer, config, decoder, post_eps, imports);
    layer.mlp = std::make_shared<const Experts>(mixture);
    layer.attention_norm->reads_f32 = layer.mlp_norm->reads_f32 = true;
    layer.attention_post_norm = rms_norm_over("", decoder.hidden, post_eps, /*weight=*/false);
    layer.mlp_post_norm->eps = post_eps;
    layer.mlp_post_norm->weighs_input = true;
    auto block = layer.block();
    const auto factors = [&](const char* written, const char* gate) {
      return factors_at(layer.prefix + written, layer.prefix + gate, decoder.hidden, imports);
    };
    block.steps[0].factors = factors("add_attn", "post_attention_residual_gate.gate");
    block.steps[1].factors = factors("add_ffn", "post_feedforward_residual_gate.gate");
    for (const auto& norm : {*layer.attention_norm, *layer.mlp_norm, *layer.mlp_post_norm, *mixture.in_norm, *mixture.expert_norm})
      centred_at_zero(norm, *block.steps[0].factors, imports);
    spec.blocks.push_back(std::move(block));
  }
  spec.embedding_norm = rms_norm_over("", decoder.hidden, decoder.eps, /*weight=*/false);
  leave_dense(spec.embedding);
  // The tokens' numbers are of the compute dtype, which the first part of each holds.
  EmptyColumns room;
  room.width = (kNumberColumns - 1) * decoder.hidden;
  spec.front = BlockSpec{.steps = {{.branches = {{.op = std::make_shared<const EmptyColumns>(room)}}, .replaces = true}}};
  spec.final_norm.reads_f32 = true;
  spec.head->dense_why = "mlx_lm takes what it reads to the dtype of its weight, which is that of codes where it is packed";
  spec.logit_multiplier = static_cast<float>(config.number("output_multiplier"));
  spec.logit_softcap = static_cast<float>(config.number("final_logit_softcapping"));
  spec.text_config = "text_config";
  keep_towers(given, spec);
  return spec;
}

}  // namespace lquant::model::family
