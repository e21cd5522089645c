// Gemma 3n's text part (type gemma3n, a wrapper): four streams of the residual (alternating updates), a residual layer of low rank beside attention,
// gates of which only the largest pass, keys and values that later layers share, and inputs that each layer has of its own. mlx_lm's shared layers
// have projections of keys and values that are never used with a cache, nor here, and must be there.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/ops/altup.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/per_layer.h"

namespace lquant::model::family {
namespace {

/// The number of standard deviations above the mean that this share of normal numbers stays below.
float deviations(double share) {
  // Newton's method on the normal distribution's function; its values here are within ±4.
  double x = 0;
  for (int i = 0; i < 60; ++i) {
    const double below = 0.5 * std::erfc(-x / std::sqrt(2.0)), density = std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
    x -= std::clamp((below - share) / density, -0.5, 0.5);
  }
  return static_cast<float>(x);
}

int widest_of(const Config& text, const char* key, int layer, int layers) {
  const auto value = text.value(key);
  return value.is_array() ? text.counts(key, layers)[layer] : text.count(key);
}

}  // namespace

ModelSpec gemma3n(const Config& config) {
  const auto text = config.child("text_config");
  const std::string root = "model.language_model.";
  auto decoder = Decoder::read(text, {.intermediate = nullptr});
  decoder.names = Names::sandwich();
  decoder.names.embedding = root + "embed_tokens";
  decoder.names.final_norm = root + "norm";
  decoder.names.layers = root + "layers.";
  decoder.activation = kernels::Activation::gelu_tanh;
  decoder.scale = 1;
  decoder.tied = true;
  const int H = decoder.hidden, streams = text.count("altup_num_inputs", 2), size = text.count("hidden_size_per_layer_input");
  const int own = decoder.layers - text.count("num_kv_shared_layers", 0), window = text.count("sliding_window"), rank = text.count("laurel_rank");
  if (own < 1) fail("model", "config.json: \"num_kv_shared_layers\" leaves none of {} layers with keys of its own; {}", decoder.layers, kMend);
  AltUp altup;
  altup.streams = streams;
  altup.active = text.count("altup_active_idx", 0);
  if (altup.active >= streams) fail("model", "config.json: \"altup_active_idx\" {} is none of {} streams; {}", altup.active, streams, kMend);
  altup.hidden = H;
  altup.clip = text.has("altup_coef_clip") ? static_cast<float>(text.number("altup_coef_clip")) : 0;
  const bool correct_scale = text.flag("altup_correct_scale");
  const auto kinds = text.texts("layer_types", decoder.layers);
  std::vector<double> sparsity(decoder.layers, 0.0);
  if (const auto pattern = text.value("activation_sparsity_pattern"); pattern.is_array()) {
    if (static_cast<int>(pattern.size()) != decoder.layers)
      fail("model", "config.json: \"activation_sparsity_pattern\" has {} entries where the model has {} layers", pattern.size(), decoder.layers);
    const JsonView view("model", "config.json: activation_sparsity_pattern", pattern, kMend);
    for (int i = 0; i < decoder.layers; ++i) {
      sparsity[i] = view.at(static_cast<std::size_t>(i)).number();
      if (!(sparsity[i] >= 0 && sparsity[i] < 1)) view.at(static_cast<std::size_t>(i)).refuse("a share from 0 to less than 1");
    }
  }
  // transformers 5 writes both bases in "rope_parameters", by kind of layer; mlx_lm opens no model without the flat ones.
  const auto base_of = [&](bool full) {
    const char* key = full ? "rope_theta" : "rope_local_base_freq";
    if (text.has(key) || !text.has("rope_parameters")) return text.number(key);
    return nested_positions(text, full ? "full_attention" : "sliding_attention", key).first;
  };
  const RopeSpec ropes[2] = {make_rope(decoder.head_dim, base_of(false), false, nullptr, 0),
                             make_rope(decoder.head_dim, base_of(true), false, nullptr, 0)};

  // The last layers of either kind before the shared ones give them their keys and values.
  const int kv = 2 * decoder.kv_heads * decoder.head_dim;
  int giver[2] = {-1, -1};  // local, global
  for (int i = 0; i < own; ++i) giver[kinds[i] == "full_attention"] = i;
  if (giver[0] < 0 || giver[1] < 0)
    fail("model", "config.json: the first {} \"layer_types\" are all of one kind, and mlx_lm runs no such model", own);
  // The state: streams, local keys and values, global ones, inputs of the layers to come.
  const int first[2] = {streams * H, streams * H + kv}, inputs_at = streams * H + 2 * kv;

  auto spec = decoder.outer("gemma3n");
  spec.streams = streams;
  for (int i = 0; i < decoder.layers; ++i) {
    const bool full = kinds[i] == "full_attention";
    auto sized = decoder;
    sized.intermediate = widest_of(text, "intermediate_size", i, decoder.layers);
    auto layer = sized.layer(i, ropes[full]);
    auto& attention = layer.attention;
    const auto over_head = [&](const char* name) { return rms_norm_over(layer.prefix + name, decoder.head_dim, decoder.eps); };
    attention.q_norm = over_head("self_attn.q_norm");
    if (!full) attention.window = window;
    if (i < own) {
      attention.k_norm = over_head("self_attn.k_norm");
      attention.v_norm = rms_norm_over("", decoder.head_dim, decoder.eps, false);
      attention.gives = i == giver[full];
    } else {
      attention.shared = Attention::Shared{giver[full], H + first[full]};
      attention.unread_norm = over_head("self_attn.k_norm");
      attention.unread.assign(attention.inputs.begin() + 1, attention.inputs.end());
      for (auto& linear : attention.unread) {
        linear.reads = 0;
        spec.imports.rows.push_back({linear.path + ".weight", {}, {{.kind = Change::Kind::zeros, .shape = {linear.out, linear.in}}}});
      }
      spec.imports.rows.push_back({layer.prefix + "self_attn.k_norm.weight", {}, {{.kind = Change::Kind::zeros, .shape = {decoder.head_dim}}}});
      attention.inputs.resize(1);
    }
    if (sparsity[i] > 0) {
      auto mlp = dynamic_cast<const GatedMlp&>(*layer.mlp);
      mlp.sparse_above = deviations(sparsity[i]);
      layer.mlp = std::make_shared<const GatedMlp>(mlp);
    }

    auto predict = altup;
    predict.router_norm = rms_norm_over(layer.prefix + "altup.router_norm", H, decoder.eps);
    predict.router = block_linear(i, layer.prefix + "altup.modality_router", Role::other, streams, H);
    predict.router.reads = 2;
    predict.weights = {layer.prefix + "altup.prediction_coefs.weight", {streams * streams, streams}};
    auto correct = predict;
    correct.weights = {layer.prefix + "altup.correction_coefs.weight", {streams, streams}};
    AltUpPredict prediction;
    prediction.altup = predict;
    AltUpCorrect correction;
    correction.altup = correct;

    Laurel laurel;
    laurel.left = block_linear(i, layer.prefix + "laurel.linear_left", Role::other, rank, H);
    laurel.right = block_linear(i, layer.prefix + "laurel.linear_right", Role::other, H, rank);
    laurel.norm = rms_norm_over(layer.prefix + "laurel.post_laurel_norm", H, decoder.eps);

    AltUpInputs inputs;
    inputs.streams = streams;
    inputs.active = altup.stream(altup.active);
    inputs.input = {inputs_at, size};
    inputs.scale = {layer.prefix + "altup.correct_output_scale", {H}};
    inputs.scales = correct_scale;
    inputs.gate = block_linear(i, layer.prefix + "per_layer_input_gate", Role::other, size, H);
    inputs.projection = block_linear(i, layer.prefix + "per_layer_projection", Role::other, H, size);
    inputs.norm = rms_norm_over(layer.prefix + "post_per_layer_input_norm", H, decoder.eps);

    Branch mixing{.op = std::make_shared<const Attention>(attention), .after = layer.attention_post_norm};
    if (attention.gives) mixing.gives = H + first[full];
    BlockSpec block;
    block.steps = {
        {.branches = {{.op = std::make_shared<const AltUpPredict>(prediction)}}, .replaces = true},
        {.before = layer.attention_norm,
         .branches = {mixing, {.op = std::make_shared<const Laurel>(laurel)}},
         .columns = {0, H},
         .scale = std::sqrt(0.5f)},
        {.branches = {{.before = layer.mlp_norm, .op = layer.mlp, .after = layer.mlp_post_norm}}, .columns = {0, H}},
        {.branches = {{.op = std::make_shared<const AltUpCorrect>(correction)}}, .replaces = true},
        {.branches = {{.op = std::make_shared<const AltUpInputs>(inputs)}}, .columns = {H, (streams - 1) * H}, .drops = {inputs_at, size}},
    };
    spec.blocks.push_back(std::move(block));
  }

  AltUpSplit split;
  AltUpMerge merge;
  merge.hidden = H;
  for (int j = 0; j + 1 < streams; ++j) {
    const auto square = [&](const std::string& name) {
      return LinearSpec{.path = root + name + "." + std::to_string(j), .role = Role::other, .out = H, .in = H};
    };
    split.projections.push_back(square("altup_projections"));
    merge.projections.push_back(square("altup_unembed_projections"));
  }
  EmptyColumns room;
  room.width = 2 * kv;
  PerLayerInputs inputs;
  inputs.layers = decoder.layers;
  inputs.size = size;
  inputs.x = {0, H};
  inputs.projection = {.path = root + "per_layer_model_projection", .role = Role::other, .out = decoder.layers * size, .in = H};
  inputs.table = {
      .path = root + "embed_tokens_per_layer", .role = Role::embed, .out = text.count("vocab_size_per_layer_input"), .in = decoder.layers * size};
  inputs.norm = rms_norm_over(root + "per_layer_projection_norm", size, decoder.eps);
  inputs.factor = 1 / std::sqrt(static_cast<float>(H));
  inputs.table_factor = std::sqrt(static_cast<float>(size));
  inputs.scale = std::sqrt(0.5f);
  spec.front = BlockSpec{};
  spec.front->steps = {{.branches = {{.op = std::make_shared<const AltUpSplit>(split)}}, .replaces = true},
                       {.branches = {{.op = std::make_shared<const EmptyColumns>(room)}}, .replaces = true},
                       {.branches = {{.op = std::make_shared<const PerLayerInputs>(inputs)}}, .replaces = true}};
  spec.tail = BlockSpec{};
  spec.tail->steps = {{.branches = {{.op = std::make_shared<const AltUpMerge>(merge)}}, .replaces = true}};
  spec.text_config = "text_config";
  // mlx_lm drops these below "model." alone, and wants the text model there too.
  spec.imports.renames.push_back({root, "language_model."});
  for (const auto& [name, what] : {std::pair{"vision_tower.", "the vision tower"},
                                   {"audio_tower.", "the audio tower"},
                                   {"embed_vision.", "the projector of pictures"},
                                   {"embed_audio.", "the projector of sounds"}}) {
    spec.imports.kept.push_back({"model." + std::string(name) + "*", what});
    spec.imports.kept.push_back({std::string(name) + "*", what, name, "model." + std::string(name)});
  }
  spec.embedding_multiplier = std::sqrt(static_cast<float>(H));
  spec.logit_softcap = text.is_null("final_logit_softcapping") ? 0 : static_cast<float>(text.number("final_logit_softcapping"));
  return spec;
}

}  // namespace lquant::model::family
