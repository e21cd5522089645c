// Hunyuan-Large (arXiv 2411.02265): rotary positions whose base has grown by an alpha, norms over each head of q and k behind them; with "use_cla"
// (arXiv 2405.12981) only every "cla_share_factor"-th layer makes keys and values, which those behind it give positions and norms of their own.
#include <cmath>

#include "base/error.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/ops/per_layer.h"

namespace lquant::model::family {
namespace {

/// A number for all layers, or a list.
int of_layer(const Config& config, const char* key, const Decoder& decoder, int layer) {
  return config.value(key).is_array() ? config.counts(key, decoder.layers)[layer] : config.count(key);
}

RopeSpec grown_rope(const Config& config, int head_dim) {
  const auto scaling = rope_scaling(config);
  if (!scaling.is_object()) fail("model", "config.json: \"rope_scaling\" is missing, and mlx_lm runs no Hunyuan without its \"alpha\"; {}", kMend);
  const JsonView view("model", "config.json: rope_scaling", scaling, kMend);
  for (const char* unused : {"factor", "type"}) view.at(unused);  // mlx_lm opens no model without them
  const double alpha = view.at("alpha").number();
  if (!(alpha > 0)) view.at("alpha").refuse("a number above 0");
  return make_rope(head_dim, config.number("rope_theta") * std::pow(alpha, head_dim / (head_dim - 2.0)), false, nullptr, 0);
}

/// Rows for checkpoints that have q, k and v in one linear, group by group, and up above gate in another.
void fused_names(const Layer& layer, const Decoder& decoder, Imports& imports) {
  const int repeats = decoder.heads / decoder.kv_heads, groups = decoder.kv_heads;
  const auto fused = layer.prefix + "self_attn.qkv_proj.weight";
  const auto cut = [&](const char* name, int first, int count) {
    imports.rows.push_back({layer.prefix + "self_attn." + name + ".weight",
                            {fused},
                            {{.kind = Change::Kind::reshape, .shape = {groups, repeats + 2, decoder.head_dim, decoder.hidden}},
                             {.kind = Change::Kind::slice, .axis = 1, .first = first, .count = count},
                             {.kind = Change::Kind::reshape, .shape = {groups * count * decoder.head_dim, decoder.hidden}}}});
  };
  cut("q_proj", 0, repeats);
  cut("k_proj", repeats, 1);
  cut("v_proj", repeats + 1, 1);
}

/// The same for a gated MLP at this path.
void fused_mlp_names(const std::string& path, int width, Imports& imports) {
  for (const int up : {1, 0})
    imports.rows.push_back({path + (up == 1 ? "up_proj.weight" : "gate_proj.weight"),
                            {path + "gate_and_up_proj.weight"},
                            {{.kind = Change::Kind::slice, .axis = 0, .first = up == 1 ? 0 : width, .count = width}}});
}

}  // namespace

ModelSpec hunyuan(const Config& config) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.always_tied(config);
  decoder.names.q_norm = "self_attn.query_layernorm";
  decoder.names.k_norm = "self_attn.key_layernorm";
  decoder.qkv_bias = decoder.o_bias = config.flag("attention_bias");
  decoder.qk_norm = config.flag("use_qk_norm");
  const auto rope = grown_rope(config, decoder.head_dim);
  const bool shares = config.flag("use_cla");
  const int period = config.count("cla_share_factor");
  const bool routed = config.count("num_experts") > 1, mixed = config.flag("use_mixed_mlp_moe");
  const Columns x = shares ? Columns{0, decoder.hidden} : Columns{};

  auto spec = decoder.outer("hunyuan");
  for (int i = 0; i < decoder.layers; ++i) {
    auto layer = decoder.layer(i, rope);
    auto& attention = layer.attention;
    attention.norms_behind_rope = true;
    attention.shares_products = shares;
    fused_names(layer, decoder, spec.imports);
    if (shares && i % period != 0) {
      attention.shared = Attention::Shared{i - i % period, decoder.hidden};
      attention.inputs.resize(1);
    }
    attention.gives = shares && i % period == 0;
    if (routed) {
      Mixture mixture;
      mixture.experts = config.count("num_experts");
      mixture.top_k = of_layer(config, "moe_topk", decoder, i);
      mixture.width = config.has("moe_intermediate_size") ? of_layer(config, "moe_intermediate_size", decoder, i) : decoder.intermediate;
      if (mixture.top_k > mixture.experts) fail("model", "config.json: \"moe_topk\" {} exceeds \"num_experts\" {}", mixture.top_k, mixture.experts);
      layer.mlp = std::make_shared<const Experts>(experts_of(layer, decoder.hidden, mixture, "mlp.gate.wg", spec.imports));
      if (mixed) {
        const int width = decoder.intermediate * of_layer(config, "num_shared_expert", decoder, i);
        layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_mlp.", decoder.hidden, width));
      }
    } else {
      fused_mlp_names(layer.prefix + "mlp.", decoder.intermediate, spec.imports);
    }
    auto block = layer.block();
    for (auto& step : block.steps) step.columns = x;
    if (attention.gives) block.steps[0].branches[0].gives = decoder.hidden;
    spec.blocks.push_back(std::move(block));
  }
  if (shares) {
    EmptyColumns room;
    room.width = 2 * decoder.kv_heads * decoder.head_dim;
    spec.front = BlockSpec{{{.branches = {{.op = std::make_shared<const EmptyColumns>(room)}}, .replaces = true}}};
  }
  return spec;
}

}  // namespace lquant::model::family
