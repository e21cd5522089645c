#include "plan/plan.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <string>

#include "base/error.h"
#include "codec/quantize.h"
#include "model/model.h"
#include "plan/choose.h"

namespace lquant::plan {
namespace {

namespace mx = mlx::core;
using nlohmann::json;

json llama(int hidden, int inner) {
  return {{"model_type", "llama"},    {"hidden_size", hidden},       {"num_hidden_layers", 2},       {"intermediate_size", inner},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},    {"rms_norm_eps", 1e-5},         {"vocab_size", 48},
          {"rope_theta", 10000.0},    {"tie_word_embeddings", true}, {"max_position_embeddings", 64}};
}

json experts() {
  auto config = llama(64, 96);
  config.update({{"model_type", "qwen3_moe"},
                 {"head_dim", 16},
                 {"num_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 64},
                 {"decoder_sparse_step", 1},
                 {"mlp_only_layers", json::array()},
                 {"norm_topk_prob", true}});
  return config;
}

constexpr codec::Format kFour{codec::Mode::affine, 4, 64};

TEST(UniformPlan, LeavesDenseWhatTheGroupDoesNotDivide) {
  const auto spec = model::spec_from_config(llama(128, 160));
  const auto plan = uniform_plan(spec, kFour);
  EXPECT_EQ(plan.base, kFour);
  // down_proj alone reads 160 inputs, which are no multiple of 64.
  ASSERT_EQ(plan.dense.size(), 2u);
  EXPECT_EQ(plan.dense.at("model.layers.0.mlp.down_proj"), "its 160 inputs are not a multiple of the group size 64");
  EXPECT_EQ(plan.formats.size() + plan.dense.size(), spec.linears().size());
  EXPECT_EQ(plan.formats.at("model.embed_tokens"), kFour);
  EXPECT_EQ(plan.by_path().size(), plan.formats.size());
}

TEST(UniformPlan, RoutersKeepTheFormatThatMlxLmGivesThem) {
  const auto plan = uniform_plan(model::spec_from_config(experts()), {codec::Mode::affine, 3, 32});
  int routers = 0;
  for (const auto& [path, format] : plan.formats) {
    const bool router = path.ends_with("mlp.gate");
    routers += router;
    EXPECT_EQ(format, router ? (codec::Format{codec::Mode::affine, 8, 64}) : plan.base) << path;
  }
  EXPECT_EQ(routers, 2);
}

// No gradient reaches an indexer: by what is measured it would get the fewest bits.
TEST(ChosenPlans, LinearsThatOnlyChooseAreNotStarved) {
  auto config = experts();
  config.update({{"model_type", "deepseek_v32"}, {"kv_lora_rank", 64}, {"q_lora_rank", 64}, {"qk_nope_head_dim", 64}, {"qk_rope_head_dim", 8}});
  config.update({{"v_head_dim", 16}, {"index_n_heads", 2}, {"index_head_dim", 64}, {"index_topk", 4}});
  const auto spec = model::spec_from_config(config);
  const std::string indexer = "model.layers.0.self_attn.indexer.";
  constexpr codec::Format kTwo{codec::Mode::affine, 2, 64}, kEight{codec::Mode::affine, 8, 64};

  const FormatChooser chooser(spec, {.formats = {kTwo, kFour}}, [](const std::string&, const codec::Format&) { return 0.0; });
  Allocation least;
  least.chosen.assign(chooser.allocator().items().size(), 0);
  const auto plan = chooser.plan(least);
  for (const char* name : {"wq_b", "wk", "weights_proj"}) EXPECT_EQ(plan.formats.at(indexer + name), kEight) << name;
  EXPECT_EQ(plan.formats.at("model.layers.0.self_attn.q_b_proj"), kTwo);
}

TEST(UniformPlan, RefusesWhatCannotBe) {
  const auto spec = model::spec_from_config(llama(40, 40));
  EXPECT_THROW(uniform_plan(spec, kFour), Error);
  EXPECT_THROW(uniform_plan(spec, {codec::Mode::affine, 7, 64}), Error);
}

TEST(QuantizationBlock, IsWhatMlxLmWrites) {
  // mlx_lm.utils.quantize_model: the global settings, and by path what the predicate returned differently.
  const auto spec = model::spec_from_config(experts());
  const auto block = quantization_block(spec, uniform_plan(spec, {codec::Mode::affine, 3, 32}));
  const json router{{"group_size", 64}, {"bits", 8}, {"mode", "affine"}};
  EXPECT_EQ(block,
            (json{{"group_size", 32}, {"bits", 3}, {"mode", "affine"}, {"model.layers.0.mlp.gate", router}, {"model.layers.1.mlp.gate", router}}));

  // What the group does not divide needs no word; what stays dense although it could be packed is false.
  const auto odd = model::spec_from_config(llama(128, 160));
  auto plan = uniform_plan(odd, kFour);
  EXPECT_EQ(quantization_block(odd, plan), (json{{"group_size", 64}, {"bits", 4}, {"mode", "affine"}}));
  plan.formats.erase("model.layers.1.mlp.up_proj");
  plan.formats["model.layers.0.mlp.up_proj"].bits = 6;
  EXPECT_EQ(quantization_block(odd, plan), (json{{"group_size", 64},
                                                 {"bits", 4},
                                                 {"mode", "affine"},
                                                 {"model.layers.1.mlp.up_proj", false},
                                                 {"model.layers.0.mlp.up_proj", {{"group_size", 64}, {"bits", 6}, {"mode", "affine"}}}}));
}

std::string refusal(const json& overrides) {
  const auto spec = model::spec_from_config(llama(128, 160));
  auto plan = uniform_plan(spec, kFour);
  try {
    apply_overrides(plan, spec, overrides, "my.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(ApplyOverrides, EveryRefusalNamesTheFileInOneShortSentence) {
  const std::string up = "model.layers.0.mlp.up_proj", down = "model.layers.0.mlp.down_proj";
  EXPECT_EQ(refusal({{up, {{"bits", 8}}}, {down, false}, {"bits", 4}}), "");
  const std::pair<json, std::string> cases[] = {
      {json::array(), "a plan is a JSON object"},
      {{{"bits", json::array()}}, "\"bits\" is [], not a number or a text"},
      {{{std::string(100'000, 'a'), false}}, "has no such linear"},
      {{{up, true}}, "\"" + up + "\" is true, not an object"},
      {{{up, {{"bits", "8"}}}}, "\"" + up + ".bits\" is \"8\", not a whole number"},
      {{{up, {{"bits", 4.5}}}}, "is 4.5, not a whole number"},
      {{{up, {{"bits", 1e308}}}}, "not a whole number"},
      {{{up, {{"bits", nullptr}}}}, "is null, not a whole number"},
      {{{up, {{"group_size", std::uint64_t{1} << 63}}}}, "not a whole number"},
      {{{up, {{"bits", 7}}}}, up + ": affine weights of 7 bits do not exist"},
      {{{up, {{"mode", 4}}}}, "\"" + up + ".mode\" is 4, not a text"},
      {{{up, {{"mode", std::string(100'000, 'a')}}}}, up + ": there is no quantization mode"},
      {{{down, {{"bits", 8}}}}, down + ": its 160 inputs are not a multiple of the plan's group size 64"},
  };
  for (const auto& [plan, part] : cases) {
    const auto said = refusal(plan);
    EXPECT_NE(said.find("] my.json: "), std::string::npos) << said;
    EXPECT_NE(said.find(part), std::string::npos) << said;
    EXPECT_EQ(said.find("exception"), std::string::npos) << said;
    EXPECT_LT(said.size(), 400u);
  }
}

TEST(PlanOf, ReadsBackWhatWasWritten) {
  const auto spec = model::spec_from_config(experts());
  const auto plan = uniform_plan(spec, {codec::Mode::affine, 3, 32});
  json config = experts();
  config["quantization"] = quantization_block(spec, plan);
  const auto again = plan_of(spec, plan.by_path(), config);
  EXPECT_EQ(again.base, plan.base);
  EXPECT_EQ(again.formats, plan.formats);
  EXPECT_TRUE(again.dense.empty());
  EXPECT_EQ(quantization_block(spec, again), config["quantization"]);
}

TEST(PlanOf, TakesBlocksThatLackAGroupAndRefusesWrongTypes) {
  const auto spec = model::spec_from_config(experts());
  json config = experts();
  config["quantization"] = {{"bits", 4}, {"group_size", nullptr}};  // as mlx_lm's recipes write it without a group size
  EXPECT_EQ(plan_of(spec, {}, config).base, kFour);
  config["quantization"] = {{"bits", 4}, {"group_size", {1}}};
  try {
    plan_of(spec, {}, config);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "[model] config.json: quantization: \"group_size\" is [1], not a whole number from 1 to 1048576; take the config.json "
                 "that was written with the weights");
  }
}

TEST(SizeOf, IsTheBytesOfTheTensors) {
  const auto model = model::Model::open(checkpoint::Checkpoint::open(std::string(LQUANT_SOURCE_DIR) + "/models/tiny"));
  const auto tensors = model.load_all(mx::bfloat16);
  std::size_t elements = 0;
  for (const auto& [name, tensor] : tensors) elements += tensor.size();
  for (const auto& format :
       {codec::Format{codec::Mode::affine, 2, 32}, kFour, codec::Format{codec::Mode::affine, 3, 128}, codec::Format{codec::Mode::affine, 5, 64},
        codec::Format{codec::Mode::mxfp4, 4, 32}, codec::Format{codec::Mode::nvfp4, 4, 16}}) {
    const auto plan = uniform_plan(model.spec(), format);
    std::size_t bytes = 0;
    for (const auto& [name, tensor] : tensors) {
      const auto path = name.substr(0, name.rfind('.'));
      if (!plan.formats.contains(path)) {
        bytes += tensor.nbytes();
        continue;
      }
      for (const auto& part : mx::quantize(tensor, format.group_size, format.bits, codec::to_string(format.mode))) bytes += part.nbytes();
    }
    const auto size = size_of(model.spec(), plan);
    EXPECT_EQ(size.bytes, static_cast<std::int64_t>(bytes)) << codec::to_string(format.mode) << format.bits;
    EXPECT_EQ(size.parameters, static_cast<std::int64_t>(elements));
    EXPECT_DOUBLE_EQ(size.bits_per_weight(), 8.0 * bytes / elements);
  }
  EXPECT_EQ(Size{}.bits_per_weight(), 0);
}

}  // namespace
}  // namespace lquant::plan
