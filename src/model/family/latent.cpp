#include "model/family/latent.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace lquant::model::family {

Latent Latent::read(const Config& config, const Decoder& decoder, int q_rank, int value) {
  Latent sizes;
  sizes.hidden = decoder.hidden;
  sizes.heads = decoder.heads;
  sizes.rank = config.count("kv_lora_rank");
  const bool without = config.is_null("q_lora_rank");  // which is a value of its own to mlx_lm
  sizes.q_rank = without ? 0 : q_rank > 0 && !config.has("q_lora_rank") ? q_rank : config.count("q_lora_rank");
  sizes.nope = config.count("qk_nope_head_dim");
  sizes.rotated = config.count("qk_rope_head_dim");
  sizes.value = value > 0 ? value : config.count("v_head_dim");
  sizes.bias = config.flag_or("attention_bias", false);
  const auto widest = std::int64_t{sizes.nope} + std::max(sizes.rotated, sizes.value);
  if (sizes.heads * widest > std::numeric_limits<int>::max() / 4)
    fail("model", "config.json: {} heads of {} features are too many", sizes.heads, widest);
  sizes.scale = static_cast<float>(1 / std::sqrt(double(sizes.nope) + sizes.rotated));
  return sizes;
}

LatentAttention latent_attention(const Layer& layer, const Latent& sizes, Imports& imports, const std::string& path) {
  const auto at = layer.prefix + path;
  const auto linear = [&](const char* name, Role role, int out, int in, bool bias = false) {
    return block_linear(layer.index, at + name, role, out, in, bias);
  };
  const int heads = sizes.heads, query = heads * (sizes.nope + sizes.rotated), made = sizes.nope + sizes.value;
  LatentAttention op;
  op.heads = heads;
  op.nope = sizes.nope, op.rotated = sizes.rotated, op.value = sizes.value, op.rank = sizes.rank;
  op.scale = sizes.scale;
  op.rope = sizes.rope;
  if (sizes.q_rank > 0) {
    op.q_a = linear("q_a_proj", Role::other, sizes.q_rank, sizes.hidden, sizes.bias);
    op.q_a_norm = rms_norm_over(at + "q_a_layernorm", sizes.q_rank, sizes.eps);
    op.q = linear("q_b_proj", Role::q, query, sizes.q_rank);
  } else {
    op.q = linear("q_proj", Role::q, query, sizes.hidden);
  }
  op.kv_a = linear("kv_a_proj_with_mqa", Role::kv, sizes.rank + sizes.rotated, sizes.hidden, sizes.bias);
  op.kv_a.parts = latent_parts(sizes.rank, sizes.rotated);
  op.kv_a_norm = rms_norm_over(at + "kv_a_layernorm", sizes.rank, sizes.eps);
  if (sizes.gated || sizes.gated_by_feature)
    op.gate = linear("g_proj", Role::other, sizes.gated_by_feature ? heads * sizes.value : heads, sizes.hidden);
  op.o = linear(sizes.output.c_str(), Role::o, sizes.hidden, heads * sizes.value, sizes.bias);
  if (!sizes.absorbed) {
    op.kv_b = linear("kv_b_proj", Role::kv, heads * made, sizes.rank);
    op.kv_b->parts = key_value_parts(heads, sizes.nope, sizes.value);
    return op;
  }
  const auto stack = [&](const char* name, int out, int in, LinearSpec::Stack kind) {
    auto one = linear(name, Role::other, out, in);
    one.experts = one.top_k = heads;
    one.stack = kind;
    return one;
  };
  op.embed_q = stack("embed_q", sizes.rank, sizes.nope, LinearSpec::Stack::sliced);
  op.unembed_out = stack("unembed_out", sizes.value, sizes.rank, LinearSpec::Stack::shared);
  using Kind = Change::Kind;
  const Change by_head{.kind = Kind::reshape, .shape = {heads, made, sizes.rank}};
  const auto rows = [](int first, int count) { return Change{.kind = Kind::slice, .axis = 1, .first = first, .count = count}; };
  const auto whole = at + "kv_b_proj.weight";
  imports.rows.push_back({op.embed_q->path + ".weight", {whole}, {by_head, rows(0, sizes.nope), {Kind::transpose}}});
  imports.rows.push_back({op.unembed_out->path + ".weight", {whole}, {by_head, rows(sizes.nope, sizes.value)}});
  return op;
}

}  // namespace lquant::model::family
