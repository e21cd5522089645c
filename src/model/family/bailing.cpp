// Bailing's mixtures (Ling and Ring, arXiv 2503.05139): q, k and v in one linear; the first layers are dense. In the linear ones (Ring 2.0 linear,
// arXiv 2510.19338) all layers but the last of each group have lightning attention. Some checkpoints want the head's columns at length 1, which
// mlx_lm makes at every load, and so does a row here; what is written has them so, and says so.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "model/family/deepseek.h"
#include "model/family/family.h"
#include "model/family/mixture.h"
#include "model/ops/lightning.h"

namespace lquant::model::family {
namespace {

Decoder decoder_of(const Config& config, const Keys& keys) {
  auto decoder = Decoder::read(config, keys);
  decoder.read_tie(config, false);
  decoder.names.embedding = "model.word_embeddings";
  decoder.names.qkv = "attention.query_key_value";
  decoder.names.o = "attention.dense";
  decoder.names.q_norm = "attention.query_layernorm";
  decoder.names.k_norm = "attention.key_layernorm";
  decoder.fused_attention = Decoder::Fused::in_order;
  decoder.qkv_bias = config.flag_or("use_qkv_bias", false);
  decoder.o_bias = decoder.mlp_bias = config.flag_or("use_bias", false);
  decoder.qk_norm = config.flag_or("use_qk_norm", false);
  return decoder;
}

/// The MLPs of all layers but the first ones, which are dense.
struct BailingMixtures {
  Mixture sizes;
  int dense_layers = 0, shared_width = 0;
  bool corrected = false;
  float lost = 0, epsilon = 0;  ///< of the routers

  static BailingMixtures read(const Config& config, const Decoder& decoder) {
    BailingMixtures own;
    own.dense_layers = config.is_null("num_experts") ? decoder.layers : config.count("first_k_dense_replace", 0);
    config.flag("norm_topk_prob");  // mlx_lm has no default for it
    if (own.dense_layers >= decoder.layers) return own;
    own.sizes = Mixture::read(config, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
    own.sizes.bias = decoder.mlp_bias;
    own.corrected = config.flag_or("moe_router_enable_expert_bias", false);
    const int width = config.count_or_none("moe_shared_expert_intermediate_size", 0);
    if (config.flag_or("moe_router_enable_shared_expert", true))
      own.shared_width = (width > 0 ? width : own.sizes.width) * config.count_or_none("num_shared_experts", 0);
    return own;
  }

  void apply(const Config& config, const Decoder& decoder, Layer& layer, Imports& imports) const {
    if (layer.index < dense_layers) return;
    auto mlp = experts_of(layer, decoder.hidden, sizes, "mlp.gate.gate_proj", imports);
    auto& router = mlp.router;
    const auto deepseek = config.filled({{"routed_scaling_factor", 1.0}, {"topk_group", 4}});
    read_corrected_sigmoids(deepseek, layer.prefix + "mlp.gate.expert_bias", router);
    if (!corrected) router.correction.reset();
    if (!config.has("score_function") || config.text("score_function") != "sigmoid") router.score = Router::Score::softmax;
    router.rounded = true;
    router.groups.lost = lost;
    router.epsilon = epsilon;
    router.linear.fixed_format = kRouterFormat;
    imports.rows.push_back({router.linear.path, {layer.prefix + "mlp.gate"}});
    layer.mlp = std::make_shared<const Experts>(mlp);
    if (shared_width > 0)
      layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", decoder.hidden, shared_width, decoder.mlp_bias));
  }
};

/// Lightning attention under the names of the layer's `attention`, whose sizes it has.
Lightning lightning(const Layer& layer, const Decoder& decoder, int norm_groups, double decay) {
  const auto& attention = layer.attention;
  const int width = attention.heads * attention.head_dim;
  Lightning op;
  op.heads = attention.heads;
  op.head_dim = attention.head_dim;
  op.scale = attention.scale;
  op.log_decays = lightning_decays(op.heads, decay);
  op.q_norm = attention.q_norm;
  op.k_norm = attention.k_norm;
  op.rope = attention.rope;
  op.norm = rms_norm_over(layer.prefix + "attention.g_norm", width, decoder.eps);
  op.groups = norm_groups;
  op.input = attention.inputs[0];
  op.gate = block_linear(layer.index, layer.prefix + "attention.g_proj", Role::other, width, decoder.hidden);
  op.output = attention.output;
  return op;
}

int read_norm_groups(const Config& config, int width) {
  const int groups = config.count("group_norm_size");
  if (width % groups != 0) fail("model", "config.json: \"group_norm_size\" {} does not divide {} features; {}", groups, width, kMend);
  return groups;
}

void finish(const Config& config, const Decoder& decoder, ModelSpec& spec) {
  leave_out_layers(spec, decoder, config.count_or_none("num_nextn_predict_layers", 0));
  if (!config.flag_or("norm_head", false)) return;
  if (spec.tied())
    fail("model", "config.json: \"norm_head\" is true, and mlx_lm does not run such a model without a head of its own; give an untied model");
  const auto head = decoder.names.head;
  spec.imports.rows.push_back({head + ".weight", {head + ".weight"}, {{.kind = Change::Kind::unit_columns}}, head + ".scales"});
  config.settle("norm_head", false);
}

}  // namespace

ModelSpec bailing_moe(const Config& config) {
  const auto flat = with_flat_positions(config);
  const auto decoder = decoder_of(config, {.head_dim = nullptr});
  const int rotated = config.has("rotary_dim") ? config.count("rotary_dim") : rotated_features(flat, decoder.head_dim, 1.0);
  const auto rope = make_rope(rotated, flat.number("rope_theta"), false, rope_scaling(flat), config.count("max_position_embeddings"));
  const auto mixtures = BailingMixtures::read(config, decoder);
  Imports imports;
  auto spec = decoder.build("bailing_moe", rope, [&](Layer& layer) { mixtures.apply(config, decoder, layer, imports); });
  spec.imports = std::move(imports);
  finish(config, decoder, spec);
  return spec;
}

ModelSpec bailing_moe_linear(const Config& config) {
  const auto flat = with_flat_positions(config);
  const auto decoder = decoder_of(config, {});
  // Lightning layers have as many keys and values as queries, and heads of a width that head_dim does not say.
  auto linear = decoder;
  linear.kv_heads = decoder.heads;
  linear.head_dim = decoder.hidden / decoder.heads;
  const bool interleaved = config.flag_or("rope_traditional", false);
  const auto rope_of = [&](const Decoder& own) {
    return make_rope(rotated_features(flat, own.head_dim, 1.0), flat.number("rope_theta"), interleaved, rope_scaling(flat),
                     config.count("max_position_embeddings"));
  };
  const int group = config.count("layer_group_size"), norm_groups = read_norm_groups(config, linear.heads * linear.head_dim);
  if (group > decoder.layers)
    fail("model", "config.json: \"layer_group_size\" {} exceeds \"num_hidden_layers\" {}, and mlx_lm runs no such model", group, decoder.layers);
  const auto mixtures = BailingMixtures::read(config, decoder);

  auto spec = decoder.outer("bailing_moe_linear");
  for (int i = 0; i < decoder.layers; ++i) {
    const bool global = (i + 1) % group == 0 || i >= decoder.layers / group * group;
    const auto& own = global ? decoder : linear;
    auto layer = own.layer(i, rope_of(own));
    if (!global) {
      const double depth = static_cast<double>(std::max(0, i - 1)) / std::max(1, decoder.layers - 1);
      layer.mixer = std::make_shared<const Lightning>(lightning(layer, decoder, norm_groups, 1 - depth + 1e-5));
    }
    mixtures.apply(config, decoder, layer, spec.imports);
    spec.blocks.push_back(layer.block());
  }
  finish(config, decoder, spec);
  return spec;
}

ModelSpec bailing_hybrid(const Config& given) {
  // Of two architectures of this name mlx_lm runs the newer one with code of its own.
  if (const auto names = given.value("architectures");
      names == "BailingMoeV3ForCausalLM" || (names.is_array() && std::find(names.begin(), names.end(), "BailingMoeV3ForCausalLM") != names.end()))
    return bailing_moe_v3(given);
  const auto config =
      given.filled({{"score_function", "sigmoid"}, {"norm_topk_prob", true}, {"moe_router_enable_expert_bias", true}, {"use_qk_norm", true}});
  for (const char* key : {"n_group", "topk_group", "num_shared_experts"}) config.count(key, 0);
  auto decoder = decoder_of(config, {});
  decoder.kv_heads = decoder.heads;
  const auto rope_of = [&](int rotated, bool interleaved) {
    return make_rope(rotated, config.number("rope_theta"), interleaved, rope_scaling(config), config.count("max_position_embeddings"));
  };
  const auto rope = rope_of(rotated_features(config, decoder.head_dim, 0.5), false);
  auto latent = Latent::read(config, decoder);
  latent.absorbed = true;
  latent.bias = decoder.qkv_bias;
  latent.eps = decoder.eps;
  latent.output = "dense";
  latent.scale *= static_cast<float>(yarn_gain(config));
  latent.rope = rope_of(latent.rotated, config.flag_or("rope_interleave", true));
  const int group = config.count("layer_group_size"), norm_groups = read_norm_groups(config, decoder.heads * decoder.head_dim);
  auto mixtures = BailingMixtures::read(config, decoder);
  if (const int width = config.count_or_none("moe_shared_expert_intermediate_size", 0); width > 0 && mixtures.shared_width > 0)
    mixtures.shared_width = width;  // of all of them
  mixtures.lost = -std::numeric_limits<float>::infinity();
  mixtures.epsilon = 1e-20f;

  Imports imports;
  auto spec = decoder.build("bailing_hybrid", rope, [&](Layer& layer) {
    const int i = layer.index;
    if ((i + 1) % group == 0 || i >= decoder.layers / group * group) {
      auto attention = latent_attention(layer, latent, imports, "attention.");
      for (auto* stack : {&*attention.embed_q, &*attention.unembed_out}) leave_dense(*stack);
      layer.mixer = std::make_shared<const LatentAttention>(attention);
    } else {
      const double depth = static_cast<double>(i) / std::max(1, decoder.layers - 1);
      layer.mixer = std::make_shared<const Lightning>(lightning(layer, decoder, norm_groups, 1 - depth + 1e-5));
    }
    mixtures.apply(config, decoder, layer, imports);
  });
  spec.imports = std::move(imports);
  leave_out_next_layers(config, decoder, spec);
  return spec;
}

}  // namespace lquant::model::family
