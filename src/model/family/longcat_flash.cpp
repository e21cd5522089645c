// LongCat-Flash (arXiv 2509.01322): a block has two attentions and two MLPs, and a mixture that reads what the first MLP does and joins behind the
// second. Some of its experts give a token back as it is. Queries and the latent are multiplied by roots of sizes. LongCat-Flash-Lite adds embeddings
// of n-grams.
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/shown.h"
#include "model/family/deepseek.h"
#include "model/ops/ngram_embedding.h"

namespace lquant::model::family {
namespace {

/// The config with what mlx_lm demands and transformers 5 does not write, for its class has nothing else.
Config complete(const Config& given) {
  nlohmann::json missing = nlohmann::json::object();
  const nlohmann::json all{{"mla_scale_q_lora", true}, {"mla_scale_kv_lora", true}, {"zero_expert_type", "identity"}, {"attention_method", "MLA"}};
  for (const auto& [key, value] : all.items())
    if (!given.has(key.c_str())) missing[key] = value;
  const auto config = with_flat_positions(given).with(missing);
  for (const char* key : {"mla_scale_q_lora", "mla_scale_kv_lora"})
    if (!config.flag(key)) fail("model", "config.json: \"{}\" is false, and mlx_lm runs no such model; {}", key, kMend);
  if (const auto type = config.text("zero_expert_type"); type != "identity")
    fail("model", "config.json: \"zero_expert_type\" is \"{}\", and mlx_lm knows \"identity\" alone; {}", shown(type), kMend);
  return config;
}

ModelSpec blocks_of(const Config& config, const std::string& family, const std::string& embedding) {
  auto decoder = Decoder::read(config, {.layers = "num_layers", .intermediate = "ffn_hidden_size", .kv_heads = nullptr, .head_dim = nullptr});
  decoder.tied = false;
  decoder.names.embedding = embedding;
  auto sizes = Latent::read(config, decoder);
  if (sizes.q_rank == 0) fail("model", "config.json: \"q_lora_rank\" is null, and mlx_lm runs no such model; {}", kMend);
  sizes.eps = 1e-5f;
  sizes.absorbed = true;
  sizes.scale *= static_cast<float>(yarn_gain(config));
  sizes.rope = make_rope(sizes.rotated, config.number("rope_theta"), true, rope_scaling(config), config.count("max_position_embeddings"));
  const auto mixture = Mixture::read(config, "n_routed_experts", "moe_topk", "expert_ffn_hidden_size");
  const int zero = config.count("zero_expert_num", 0);
  Router router;
  router.experts = mixture.experts + zero;
  router.top_k = mixture.top_k;
  router.normalize = config.flag_or("norm_topk_prob", false);
  router.epsilon = 1e-20f;
  router.factor = static_cast<float>(config.number("routed_scaling_factor"));
  const bool router_bias = config.flag_or("router_bias", false);

  auto spec = decoder.outer(family);
  for (int i = 0; i < decoder.layers; ++i) {
    const auto layer = decoder.layer(i, std::nullopt);
    const auto norm = [&](const std::string& name, int half) { return decoder.norm_at(layer.prefix + name + "." + std::to_string(half)); };
    const auto attention = [&](int half) {
      auto op = latent_attention(layer, sizes, spec.imports, "self_attn." + std::to_string(half) + ".");
      op.query_factor = std::sqrt(static_cast<float>(decoder.hidden) / static_cast<float>(sizes.q_rank));
      op.latent_factor = std::sqrt(static_cast<float>(decoder.hidden) / static_cast<float>(sizes.rank));
      return std::make_shared<const LatentAttention>(op);
    };
    const auto mlp = [&](int half) {
      return std::make_shared<const GatedMlp>(gated_mlp(layer, "mlps." + std::to_string(half) + ".", decoder.hidden, decoder.intermediate));
    };
    auto experts = experts_of(layer, decoder.hidden, mixture, "mlp.router.classifier", spec.imports);
    auto classifier = experts.router.linear;
    classifier.out = router.experts;
    classifier.bias = router_bias;
    classifier.fixed_format = kRouterFormat;
    experts.router = router;
    experts.router.linear = classifier;
    experts.router.correction = ParameterSpec{layer.prefix + "mlp.router.e_score_correction_bias", {router.experts}, /*keeps_dtype=*/true};
    experts.identities = zero;
    for (int e = 0; e < zero; ++e)
      spec.left_out.push_back(
          {fmt::format("{}mlp.experts.{}.*", layer.prefix, mixture.experts + e), "experts that give a token back use no weights"});

    BlockSpec block;
    block.steps = {
        {.branches = {{norm("input_layernorm", 0), attention(0)}}},
        {.before = norm("post_attention_layernorm", 0), .branches = {{.op = mlp(0)}, {.op = std::make_shared<const Experts>(experts), .late = true}}},
        {.branches = {{norm("input_layernorm", 1), attention(1)}}},
        {.branches = {{norm("post_attention_layernorm", 1), mlp(1)}}}};
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace

ModelSpec longcat_flash(const Config& given) { return blocks_of(complete(given), "longcat_flash", "model.embed_tokens"); }

ModelSpec longcat_flash_ngram(const Config& given) {
  const auto config = complete(given);
  const std::string at = config.prefix() + "model.ngram_embeddings.";
  auto spec = blocks_of(config, "longcat_flash_ngram", "model.ngram_embeddings.word_embeddings");
  spec.imports.rows.push_back({spec.embedding.path, {config.prefix() + "model.embed_tokens"}});
  NgramEmbedding op;
  op.vocab = spec.vocab;
  op.per_length = config.count_or("emb_split_num", 4);
  const int longest = config.count_or("emb_neighbor_num", 4, 2);
  const std::int64_t count = std::int64_t{op.per_length} * (longest - 1);
  const std::int64_t rows = std::int64_t{config.count_or("ngram_vocab_size_ratio", 78)} * spec.vocab + 1;
  if (count > spec.hidden || rows + 2 * count > std::numeric_limits<int>::max())
    fail("model", "config.json: {} tables of {} rows (\"emb_split_num\", \"emb_neighbor_num\", \"ngram_vocab_size_ratio\") cannot be; {}", count,
         rows, kMend);
  const int width = spec.hidden / static_cast<int>(count);
  for (int i = 0; i < count; ++i) {
    const auto number = std::to_string(i);
    op.tables.push_back({.path = at + "embedders." + number, .role = Role::embed, .out = static_cast<int>(rows) + 2 * i, .in = width});
    op.projections.push_back({.path = at + "post_projs." + number, .role = Role::other, .out = spec.hidden, .in = width});
  }
  spec.front = BlockSpec{};
  spec.front->steps = {{.branches = {{.op = std::make_shared<const NgramEmbedding>(op)}}, .replaces = true}};
  return spec;
}

}  // namespace lquant::model::family
