#include "plan/recipe.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/error.h"

namespace lquant::plan {
namespace {

using nlohmann::json;

model::ModelSpec spec_of(int layers, json changes = json::object()) {
  json config{{"model_type", "llama"},    {"hidden_size", 64},        {"num_hidden_layers", layers}, {"intermediate_size", 64},
              {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"rms_norm_eps", 1e-5},        {"vocab_size", 48},
              {"rope_theta", 10000.0},    {"head_dim", 16},           {"tie_word_embeddings", true}, {"max_position_embeddings", 64}};
  config.update(changes);
  return model::spec_from_config(config);
}

const json kExperts{{"model_type", "qwen3_moe"},   {"num_experts", 4},         {"num_experts_per_tok", 2},
                    {"moe_intermediate_size", 64}, {"decoder_sparse_step", 1}, {"mlp_only_layers", json::array({1})},
                    {"norm_topk_prob", true}};

constexpr codec::Format kBase{codec::Mode::affine, 5, 32};

/// The blocks in which the linear of that name has the high bits.
std::set<int> favoured(const QuantPlan& plan, const std::string& name, int layers, int high) {
  std::set<int> found;
  for (int i = 0; i < layers; ++i)
    if (plan.formats.at("model.layers." + std::to_string(i) + "." + name).bits == high) found.insert(i);
  return found;
}

// By hand from the rule: of 16 blocks the eighths are 0, 1 and 14, 15, and every third from 2 on that is the last of its three.
TEST(RecipePlan, EighthsAndEveryThird) {
  const auto plan = recipe_plan(spec_of(16), "mixed_3_6", kBase);
  const std::set<int> wanted{0, 1, 4, 7, 10, 13, 14, 15};
  EXPECT_EQ(favoured(plan, "self_attn.v_proj", 16, 6), wanted);
  EXPECT_EQ(favoured(plan, "mlp.down_proj", 16, 6), wanted);
  for (const char* low : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"})
    EXPECT_EQ(favoured(plan, low, 16, 3).size(), 16u) << low;
  // 9 blocks: an eighth is 1, the last one starts at 63 / 8 = 7.
  EXPECT_EQ(favoured(recipe_plan(spec_of(9), "mixed_3_6", kBase), "mlp.down_proj", 9, 6), (std::set<int>{0, 3, 6, 7, 8}));
  // 3 blocks: no first eighth, the last starts at 21 / 8 = 2.
  EXPECT_EQ(favoured(recipe_plan(spec_of(3), "mixed_3_6", kBase), "mlp.down_proj", 3, 6), (std::set<int>{2}));
}

TEST(RecipePlan, EachNameHasItsBits) {
  for (const auto& [name, low, high] : {std::tuple{"mixed_2_6", 2, 6}, {"mixed_3_4", 3, 4}, {"mixed_3_6", 3, 6}, {"mixed_4_6", 4, 6}}) {
    const auto plan = recipe_plan(spec_of(3, {{"tie_word_embeddings", false}}), name, kBase);
    EXPECT_EQ(plan.formats.at("lm_head"), (codec::Format{codec::Mode::affine, high, 32})) << name;
    EXPECT_EQ(plan.formats.at("model.embed_tokens"), (codec::Format{codec::Mode::affine, low, 32})) << name;
    EXPECT_EQ(plan.base, kBase);
  }
  EXPECT_EQ(recipe_names().size(), 4u);
}

TEST(RecipePlan, FusedValuesAndExperts) {
  const auto fused = recipe_plan(spec_of(3, {{"model_type", "phi3"}}), "mixed_2_6", kBase);
  EXPECT_EQ(favoured(fused, "self_attn.qkv_proj", 3, 6), (std::set<int>{2}));
  EXPECT_EQ(favoured(fused, "mlp.gate_up_proj", 3, 2).size(), 3u);
  const auto experts = recipe_plan(spec_of(3, kExperts), "mixed_2_6", kBase);
  EXPECT_EQ(experts.formats.at("model.layers.2.mlp.switch_mlp.down_proj").bits, 6);
  EXPECT_EQ(experts.formats.at("model.layers.0.mlp.switch_mlp.down_proj").bits, 2);
  EXPECT_EQ(experts.formats.at("model.layers.1.mlp.down_proj").bits, 2);
  EXPECT_EQ(experts.formats.at("model.layers.2.mlp.gate"), (codec::Format{codec::Mode::affine, 2, 32}));  // a router: mlx_lm makes no exception here
}

TEST(RecipePlan, ConfigNamesEveryLinear) {
  const auto spec = spec_of(3, {{"intermediate_size", 80}});
  const auto block = quantization_block(spec, recipe_plan(spec, "mixed_4_6", {codec::Mode::affine, 4, 32}));
  // 80 inputs are no multiple of 32: that linear is dense and, as in every block that mlx_lm writes, not named.
  EXPECT_FALSE(block.contains("model.layers.0.mlp.down_proj"));
  EXPECT_EQ(block.at("model.embed_tokens"), (json{{"group_size", 32}, {"bits", 4}, {"mode", "affine"}}));
  EXPECT_EQ(block.size(), 3 + spec.linears().size() - 3);
}

TEST(RecipePlan, RefusesInASentence) {
  const auto sentence = [](const std::string& name, const codec::Format& base) {
    try {
      recipe_plan(spec_of(3), name, base);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(sentence("mixed_4_5", kBase),
            "--quant-predicate mixed_4_5: there is no such recipe; did you mean mixed_4_6? (recipes: mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6)");
  EXPECT_EQ(sentence("mixed_4_6", {codec::Mode::mxfp4, 4, 32}),
            "--quant-predicate mixed_4_6 mixes affine formats; leave out --q-mode mxfp4 or the recipe");
}

TEST(FormatCounts, TheCommonestComesFirst) {
  const auto uniform = format_counts(uniform_plan(spec_of(3), kBase));
  ASSERT_EQ(uniform.size(), 1u);
  EXPECT_EQ(uniform[0].first, (codec::Format{codec::Mode::affine, 5, 32}));
  const auto plan = recipe_plan(spec_of(3), "mixed_2_6", kBase);
  const auto mixed = format_counts(plan);
  ASSERT_EQ(mixed.size(), 2u);
  EXPECT_EQ(mixed[0].first, (codec::Format{codec::Mode::affine, 2, 32}));
  EXPECT_EQ(mixed[1].first, (codec::Format{codec::Mode::affine, 6, 32}));
  EXPECT_GT(mixed[0].second, mixed[1].second);
  EXPECT_EQ(mixed[0].second + mixed[1].second, static_cast<int>(plan.formats.size()));
}

}  // namespace
}  // namespace lquant::plan
