// PLaMo 2 (arXiv 2509.04897): Mamba-2's recurrence fed as Mamba's, by products of its own for dt, B and C, in most layers; attention with norms of q
// and k in the others; norms before and behind both halves, with offsets. mlx_lm has no window here.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/state_space.h"

namespace lquant::model::family {
namespace {

const nlohmann::json& defaults() {
  static const nlohmann::json fields = {
      {"hidden_size", 4096},         {"num_hidden_layers", 32},    {"rms_norm_eps", 1e-6}, {"num_attention_heads", 32},  {"num_key_value_heads", 4},
      {"hidden_size_per_head", 128}, {"mamba_d_state", 64},        {"mamba_d_conv", 4},    {"mamba_num_heads", 64},      {"mamba_step", 2},
      {"mamba_enabled", true},       {"intermediate_size", 13312}, {"vocab_size", 32000},  {"tie_word_embeddings", true}};
  return fields;
}

/// The name has no dot before "weight".
NormSpec bare_norm(const std::string& name, int size, float eps) {
  auto norm = rms_norm_over(name, size, eps);
  norm.suffix = "_weight";
  return norm;
}

Mamba mixer_of(const Config& config, const Layer& layer, int hidden, int head_dim, float eps, Imports& imports) {
  const int heads = config.count("mamba_num_heads"), state = config.count("mamba_d_state"), inner = heads * head_dim;
  const int rank = std::max(64, hidden / 16);  // whatever config.json says
  const auto path = layer.prefix + "mixer.";
  const auto linear = [&](const char* name, int out, int in) { return block_linear(layer.index, path + name, Role::other, out, in); };
  Mamba op;
  op.input = linear("in_proj", 2 * inner, hidden);
  op.input.parts = {{Role::other, inner, head_dim, head_dim, 2 * head_dim}, {Role::other, inner, 0, head_dim, 2 * head_dim}};
  op.taps = {path + "conv1d.weight", {inner, config.count("mamba_d_conv"), 1}};
  imports.rows.push_back(reshaped(op.taps));
  op.select = linear("bcdt_proj", rank + 2 * state, inner);
  op.select.parts = {Part::piece(Role::other, 2 * state, rank), Part::piece(Role::other, 0, state), Part::piece(Role::other, state, state)};
  op.dt_norm = bare_norm(path + "dt_norm", rank, eps);
  op.b_norm = bare_norm(path + "B_norm", state, eps), op.c_norm = bare_norm(path + "C_norm", state, eps);
  op.dt = linear("dt_proj", heads, rank);
  HeadRecurrence recurrence;
  recurrence.heads = heads, recurrence.head_dim = head_dim, recurrence.state = state;
  recurrence.least = 0.001, recurrence.most = 100;
  recurrence.dt_bias = {path + "dt_bias", {heads}};
  recurrence.a_log = {path + "A_log", {heads}};
  recurrence.d = {path + "D", {heads}};
  op.by_head = recurrence;
  op.output = linear("out_proj", hidden, inner);
  return op;
}

}  // namespace

ModelSpec plamo2(const Config& given) {
  const auto config = given.filled(defaults());
  auto decoder = Decoder::read(config, {.head_dim = "hidden_size_per_head"});
  decoder.read_tie(config, true);
  decoder.fused_attention = Decoder::Fused::in_order;
  decoder.fused_mlp = true;
  auto& names = decoder.names;
  names.layers = "model.layers.layers.", names.qkv = "mixer.qkv_proj", names.o = "mixer.o_proj";
  names.attention_norm = "pre_mixer_norm", names.attention_post_norm = "post_mixer_norm";
  names.mlp_norm = "pre_mlp_norm", names.mlp_post_norm = "post_mlp_norm";
  decoder.norm_offset = 1;
  const int step = config.count("mamba_step", 2);
  if (decoder.layers <= step / 2)
    fail("model",
         "config.json: {} layers are too few for \"mamba_step\" {}: mlx_lm runs none without the first layer of attention that it asks for; {}",
         decoder.layers, step, kMend);
  if (std::int64_t{1} * config.count("mamba_num_heads") * decoder.head_dim > std::numeric_limits<int>::max() / 8)
    fail("model", "config.json: {} heads of Mamba of {} features are too many", config.count("mamba_num_heads"), decoder.head_dim);
  const bool mamba = config.flag("mamba_enabled");

  Imports imports;
  auto spec = decoder.build("plamo2", make_rope(decoder.head_dim, 10000, false, nullptr, 0), [&](Layer& layer) {
    layer.attention_post_norm->offset = 1.0f / 5;
    layer.mlp_post_norm->offset = static_cast<float>(1 / std::pow(5, 1.5));
    if (mamba && layer.index % step != step / 2) {
      layer.mixer = std::make_shared<const Mamba>(mixer_of(config, layer, decoder.hidden, decoder.head_dim, decoder.eps, imports));
      return;
    }
    const auto by_head = [&](const char* name, int heads) {
      auto norm = bare_norm(layer.prefix + "mixer." + name, decoder.head_dim, 1e-6f);  // whatever config.json says
      norm.rows = heads;
      return norm;
    };
    layer.attention.q_norm = by_head("q", decoder.heads);
    layer.attention.k_norm = by_head("k", decoder.kv_heads);
  });
  spec.imports = std::move(imports);
  return spec;
}

}  // namespace lquant::model::family
