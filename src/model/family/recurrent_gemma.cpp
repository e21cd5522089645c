// RecurrentGemma (arXiv 2404.07839), a Griffin: blocks of a linear recurrence and of attention with a window and one key and value head, in a pattern
// that repeats; norms of 1 + w. mlx_lm fixes the eps of the blocks' norms, four taps, and positions of base 10000 on half of each head.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/state_space.h"
#include "model/ops/gated_mlp.h"
#include "model/ops/rg_lru.h"

namespace lquant::model::family {
namespace {

std::vector<std::string> pattern_of(const Config& config, int layers) {
  const auto pattern = config.texts(config.has("block_types") ? "block_types" : "_block_types", 0);
  for (const auto& kind : pattern)
    if (kind != "recurrent" && kind != "attention")
      fail("model", "config.json: \"block_types\" has blocks that are neither recurrent nor attention; {}", kMend);
  if (std::find(pattern.begin(), pattern.end(), "attention") - pattern.begin() >= std::min<std::ptrdiff_t>(layers, std::ssize(pattern)))
    fail("model", "config.json: \"block_types\" has no attention, without which mlx_lm does not run a RecurrentGemma; {}", kMend);
  return pattern;
}

RgLru recurrence(const Layer& layer, int width, int heads, Imports& imports) {
  const auto path = layer.prefix + "temporal_block.";
  const auto linear = [&](const char* name) { return block_linear(layer.index, path + name, Role::other, width, width, true); };
  const auto by_head = [&](const char* name, bool matrix) {
    const int size = width / heads;
    return ParameterSpec{path + "rg_lru." + name, matrix ? mx::Shape{heads, size, size} : mx::Shape{heads, size}};
  };
  RgLru op;
  op.heads = heads;
  op.y = linear("linear_y"), op.x = linear("linear_x"), op.output = linear("linear_out");
  op.taps = {path + "conv_1d.weight", {width, 4, 1}};
  op.taps_bias = {path + "conv_1d.bias", {width}};
  op.input_gate = by_head("input_gate_weight", true), op.input_gate_bias = by_head("input_gate_bias", false);
  op.decay_gate = by_head("recurrent_gate_weight", true), op.decay_gate_bias = by_head("recurrent_gate_bias", false);
  op.rate = {path + "rg_lru.recurrent_param", {width}};
  imports.rows.push_back(reshaped(op.taps));
  return op;
}

}  // namespace

ModelSpec recurrent_gemma(const Config& given) {
  constexpr float kEps = 1e-5f;
  const auto config = with_flat_positions(given);
  auto decoder = Decoder::read(config, {.kv_heads = nullptr, .head_dim = nullptr});
  decoder.require_even_heads();
  decoder.kv_heads = 1;
  if (decoder.intermediate % 2 != 0) fail("model", "config.json: \"intermediate_size\" {} is not even; {}", decoder.intermediate, kMend);
  decoder.intermediate /= 2;
  decoder.norm_offset = 1;
  decoder.tied = false;
  decoder.head_if_present = true;
  decoder.o_bias = decoder.mlp_bias = true;
  decoder.activation = kernels::Activation::gelu_tanh;
  auto& names = decoder.names;
  names.final_norm = "model.final_norm", names.attention_norm = "temporal_pre_norm", names.mlp_norm = "channel_pre_norm";
  names.q = "temporal_block.q_proj", names.k = "temporal_block.k_proj", names.v = "temporal_block.v_proj", names.o = "temporal_block.o_proj";
  names.gate = "mlp_block.gate_proj", names.up = "mlp_block.up_proj", names.down = "mlp_block.down_proj";
  const auto pattern = pattern_of(config, decoder.layers);
  // Of no use, but mlx_lm opens no model without them.
  const nlohmann::json unread = {{"attention_bias", false}, {"conv1d_width", 4}, {"num_key_value_heads", 1}, {"rope_theta", 10000.0}};
  for (const auto& [key, value] : unread.items())
    if (!config.has(key.c_str())) config.settle(key.c_str(), value);

  Imports imports;
  const auto rope = make_rope(decoder.head_dim / 2, 10000, false, nullptr, 0);
  auto spec = decoder.build("recurrent_gemma", rope, [&](Layer& layer) {
    layer.attention_norm->eps = layer.mlp_norm->eps = kEps;
    layer.attention.window = config.count("attention_window_size");
    if (pattern[layer.index % pattern.size()] == "recurrent")
      layer.mixer = std::make_shared<const RgLru>(recurrence(layer, decoder.hidden, decoder.heads, imports));
  });
  spec.imports = std::move(imports);
  if (config.flag_or("embeddings_scale_by_sqrt_dim", true)) spec.embedding_multiplier = std::sqrt(static_cast<float>(decoder.hidden));
  spec.logit_softcap = static_cast<float>(config.number_or("logits_soft_cap", 0));
  return spec;
}

}  // namespace lquant::model::family
