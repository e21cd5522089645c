// DeepSeek-V2 (arXiv 2405.04434), V3 (arXiv 2412.19437) and V3.2 with its indexer; GLM-4.7-Flash and GLM-5, which differ from them in sizes and
// numbers.
#include "model/family/deepseek.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace lquant::model::family {

namespace {
constexpr const char* kCorrection = "mlp.gate.e_score_correction_bias";
}

std::optional<Mixtures> Mixtures::read(const Config& config, int experts) {
  const char* key = "n_routed_experts";
  if (config.is_null(key) || (experts == 0 && !config.has(key))) return std::nullopt;
  const auto filled = experts > 0 ? config.filled({{key, experts}}) : config;
  Mixtures all;
  all.sizes = Mixture::read(filled, key, "num_experts_per_tok", "moe_intermediate_size");
  const int shared = config.is_null("n_shared_experts") ? 0 : config.count_or("n_shared_experts", 0, 0);
  all.shared = shared * all.sizes.width;
  all.first = config.count_or("first_k_dense_replace", 0, 0);
  all.every = config.count_or("moe_layer_freq", 1);
  all.router.experts = all.sizes.experts, all.router.top_k = all.sizes.top_k;
  all.router.factor = static_cast<float>(config.number_or("routed_scaling_factor", 1));
  return all;
}

Mixtures Mixtures::demanded(const Config& config) {
  for (const char* key : {"n_routed_experts", "first_k_dense_replace"}) config.count(key, 0);
  if (!config.is_null("n_shared_experts")) config.count("n_shared_experts");
  auto all = *read(config);
  all.every = 1;
  read_corrected_sigmoids(config, kCorrection, all.router);
  return all;
}

void Mixtures::put(Layer& layer, int hidden, Imports& imports) const {
  auto op = experts_of(layer, hidden, sizes, "mlp.gate", imports);
  auto linear = op.router.linear;
  linear.fixed_format = router.linear.fixed_format;
  op.router = router;
  op.router.linear = linear;
  if (bare) op.router.linear.dense_why = kBareRouter;
  if (op.router.correction) op.router.correction->path = layer.prefix + op.router.correction->path;
  layer.mlp = std::make_shared<const Experts>(op);
  if (shared > 0) layer.shared = std::make_shared<const GatedMlp>(gated_mlp(layer, "mlp.shared_experts.", hidden, shared, shared_bias));
}

void choose_by_sigmoid(const Config& config, float epsilon, Mixtures& mixtures) {
  require_noaux(config);
  const auto named = config.is_null("norm_topk_prob") ? config : config.filled({{"norm_topk_prob", true}});
  read_corrected_sigmoids(named.filled({{"routed_scaling_factor", 1.0}}), kCorrection, mixtures.router);
  mixtures.router.epsilon = epsilon;
}

double yarn_gain(const Config& config, const char* key) {
  if (!config.has(key)) return 1;
  const auto scaling = config.child(key);
  const double all = scaling.number_or("mscale_all_dim", 0);
  if (all == 0) return 1;
  const double factor = scaling.number("factor");
  return factor <= 1 ? 1 : std::pow(0.1 * all * std::log(factor) + 1, 2);
}

void leave_out_next_layers(const Config& config, const Decoder& decoder, ModelSpec& spec) {
  const int count = std::max(1, config.count_or("num_nextn_predict_layers", 1, 0));
  leave_out_layers(spec, decoder, std::min(count, 64));
}

namespace {

/// Defaults that mlx_lm's classes of DeepSeek have in common.
Config filled(const Config& config) {
  return config.filled({{"vocab_size", 102400},
                        {"hidden_size", 4096},
                        {"intermediate_size", 11008},
                        {"moe_intermediate_size", 1407},
                        {"num_hidden_layers", 30},
                        {"num_attention_heads", 32},
                        {"num_key_value_heads", 32},
                        {"kv_lora_rank", 512},
                        {"qk_rope_head_dim", 64},
                        {"v_head_dim", 128},
                        {"qk_nope_head_dim", 128},
                        {"max_position_embeddings", 2048},
                        {"rms_norm_eps", 1e-6},
                        {"rope_theta", 10000.0}});
}

Decoder untied(const Config& config) {
  auto decoder = Decoder::read(config, {.head_dim = nullptr});
  decoder.tied = false;
  return decoder;
}

ModelSpec built(const char* family, const Config& config, const Decoder& decoder, const std::optional<Mixtures>& mixtures,
                const std::function<LatentAttention(const Layer&, Imports&)>& attention) {
  Imports imports;
  auto spec = decoder.build(family, std::nullopt, [&](Layer& layer) {
    layer.mixer = std::make_shared<const LatentAttention>(attention(layer, imports));
    if (mixtures && mixtures->at(layer.index)) mixtures->put(layer, decoder.hidden, imports);
  });
  // mlx_lm never ties the head: a model that is tied has a copy.
  if (config.value("tie_word_embeddings") == true)
    imports.rows.push_back({decoder.prefix + decoder.names.head, {decoder.prefix + decoder.names.embedding}});
  spec.imports = std::move(imports);
  leave_out_next_layers(config, decoder, spec);
  return spec;
}

/// Absorbed, interleaved, with YaRN's gain of the scores.
Latent absorbed(const Config& config, const Decoder& decoder, int q_rank, const nlohmann::json& scaling, const char* key = "rope_scaling") {
  auto sizes = Latent::read(config, decoder, q_rank);
  sizes.absorbed = true;
  sizes.scale *= static_cast<float>(yarn_gain(config, key));
  sizes.rope = make_rope(sizes.rotated, config.number("rope_theta"), true, scaling, config.count("max_position_embeddings"));
  return sizes;
}

/// DeepSeek-V3.2's choice of keys, in every layer.
ModelSpec with_indexer(const char* family, const Config& config, const nlohmann::json& scaling, const char* key, bool interleaved) {
  const auto decoder = untied(config);
  const auto sizes = absorbed(config, decoder, 1536, scaling, key);
  if (sizes.q_rank == 0) fail("model", "config.json: \"q_lora_rank\" is null, and mlx_lm runs no indexer without; {}", kMend);
  Indexer indexer;
  indexer.heads = config.count("index_n_heads");
  indexer.dim = config.count("index_head_dim");
  indexer.top_k = config.count("index_topk");
  if (indexer.dim < sizes.rotated)
    fail("model", "config.json: \"index_head_dim\" {} is less than \"qk_rope_head_dim\" {}; {}", indexer.dim, sizes.rotated, kMend);
  indexer.rope = make_rope(sizes.rotated, config.number("rope_theta"), interleaved, scaling, config.count("max_position_embeddings"));
  auto mixtures = Mixtures::read(config);
  if (mixtures) choose_by_sigmoid(config, 0, *mixtures);
  return built(family, config, decoder, mixtures, [&](const Layer& layer, Imports& imports) {
    auto op = latent_attention(layer, sizes, imports);
    const auto at = layer.prefix + "self_attn.indexer.";
    const auto linear = [&](const char* name, int out, int in) {
      auto one = block_linear(layer.index, at + name, Role::other, out, in);
      one.only_chooses = true;
      return one;
    };
    op.indexer = indexer;
    op.indexer->wq_b = linear("wq_b", indexer.heads * indexer.dim, sizes.q_rank);
    op.indexer->wk = linear("wk", indexer.dim, decoder.hidden);
    op.indexer->weights = linear("weights_proj", indexer.heads, decoder.hidden);
    op.indexer->k_norm = rms_norm_over(at + "k_norm", indexer.dim, 1e-5f);
    op.indexer->k_norm.kind = NormSpec::Kind::layer;
    op.indexer->k_norm.bias = true;
    return op;
  });
}

}  // namespace

// Positions are YaRN's whatever the config calls them; without a scaling they are as the factor 1 makes them.
ModelSpec deepseek_v2(const Config& given) {
  auto config = filled(with_flat_positions(given));
  if (!config.has("rope_scaling")) config = config.with({{"rope_scaling", {{"type", "yarn"}, {"factor", 1.0}}}});
  const auto decoder = untied(config);
  auto scaling = rope_scaling(config);
  scaling["type"] = "yarn";
  auto sizes = Latent::read(config, decoder, 1536);
  sizes.scale *= static_cast<float>(yarn_gain(config));
  sizes.rope = make_rope(sizes.rotated, config.number("rope_theta"), true, scaling, config.count("max_position_embeddings"));
  auto mixtures = Mixtures::read(config);
  if (mixtures && config.value("topk_method") == "group_limited_greedy") {
    for (const char* key : {"n_group", "topk_group"}) config.count(key);  // mlx_lm has no default for them
    mixtures->router.groups = read_groups(config, mixtures->sizes.experts, /*by_two=*/false);
  }
  return built("deepseek_v2", config, decoder, mixtures,
               [&](const Layer& layer, Imports& imports) { return latent_attention(layer, sizes, imports); });
}

ModelSpec deepseek_v3(const Config& given) {
  const auto config = filled(given);
  const auto decoder = untied(config);
  constexpr int kMost = 61;
  if (decoder.layers > kMost)
    fail("model", "config.json: of {} layers mlx_lm leaves out number {}, which it takes for one of MTP, and runs no such model", decoder.layers,
         kMost);
  const auto sizes = absorbed(config, decoder, 1536, rope_scaling(config));
  auto mixtures = Mixtures::read(config.filled({{"num_experts_per_tok", 1}}));
  if (mixtures) choose_by_sigmoid(config, 0, *mixtures);
  return built("deepseek_v3", config, decoder, mixtures,
               [&](const Layer& layer, Imports& imports) { return latent_attention(layer, sizes, imports); });
}

ModelSpec deepseek_v32(const Config& given) {
  const auto config = filled(given).filled({{"num_experts_per_tok", 1}, {"index_head_dim", 128}, {"index_n_heads", 64}, {"index_topk", 2048}});
  return with_indexer("deepseek_v32", config, rope_scaling(config), "rope_scaling", config.flag_or("indexer_rope_interleave", false));
}

ModelSpec glm_moe_dsa(const Config& given) {
  const auto scaling = rope_scaling(given, "rope_parameters");
  if (!scaling.is_object()) fail("model", "config.json: \"rope_parameters\" is missing; {}", kMend);
  const auto config = given.with({{"rope_theta", given.child("rope_parameters").number("rope_theta")}});
  // mlx_lm demands them; transformers 5 does not write them.
  const nlohmann::json demanded{{"moe_layer_freq", 1}, {"topk_method", "noaux_tc"}, {"scoring_func", "sigmoid"}};
  for (const auto& [key, value] : demanded.items())
    if (!config.has(key.c_str())) config.settle(key.c_str(), value);
  return with_indexer("glm_moe_dsa", config, scaling, "rope_parameters", config.flag_or("indexer_rope_interleave", true));
}

ModelSpec glm4_moe_lite(const Config& given) {
  const auto config = given.filled({{"vocab_size", 154880},
                                    {"hidden_size", 2048},
                                    {"intermediate_size", 10240},
                                    {"moe_intermediate_size", 1536},
                                    {"num_hidden_layers", 47},
                                    {"num_attention_heads", 20},
                                    {"num_key_value_heads", 20},
                                    {"routed_scaling_factor", 1.8},
                                    {"kv_lora_rank", 512},
                                    {"qk_rope_head_dim", 64},
                                    {"qk_nope_head_dim", 192},
                                    {"v_head_dim", 256},
                                    {"num_experts_per_tok", 4},
                                    {"first_k_dense_replace", 1},
                                    {"max_position_embeddings", 202752},
                                    {"rms_norm_eps", 1e-5},
                                    {"rope_theta", 1e6}});
  const auto decoder = untied(config);
  auto sizes = absorbed(config, decoder, 768, rope_scaling(config));
  sizes.eps = decoder.eps;
  const bool shared = config.has("n_shared_experts") || config.is_null("n_shared_experts");
  auto mixtures = Mixtures::read(shared ? config : config.filled({{"n_shared_experts", 1}}), 64);
  if (mixtures) choose_by_sigmoid(config, 1e-20f, *mixtures);
  return built("glm4_moe_lite", config, decoder, mixtures,
               [&](const Layer& layer, Imports& imports) { return latent_attention(layer, sizes, imports); });
}

}  // namespace lquant::model::family
