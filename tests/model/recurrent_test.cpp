// Families with recurrences: published sizes to the last parameter, what is refused, and which of their tensors an import changes.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include "model/ops/mamba2.h"
#include "model/spec.h"
#include "oracle/model_random.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;
using nlohmann::json;

/// Everything that a checkpoint of the model holds.
std::int64_t parameters_of(const ModelSpec& spec) {
  std::int64_t total = 0;
  for (const auto* linear : spec.linears()) total += linear->parameters() + (linear->bias ? linear->parameters() / linear->in : 0);
  for (const auto* norm : spec.outer_norms()) total += norm->parameters();
  for (const auto& block : spec.blocks) {
    for (const auto* norm : block.norms()) total += norm->parameters();
    for (const auto* parameter : block.parameters()) total += parameter->parameters();
  }
  return total;
}

// Fields as published; the sums are those of the published files: Mamba 130M, Falcon Mamba 7B, Mamba-2 130M, Falcon H1 0.5B, Jamba 0.1,
// RecurrentGemma 2B, RWKV-7 World 0.1B, LFM2 8B-A1B.
TEST(Recurrent, PublishedModelsHaveTheirPublishedSizes) {
  const std::vector<std::pair<const char*, std::int64_t>> models = {
      {R"({"model_type":"mamba","vocab_size":50280,"hidden_size":768,"intermediate_size":1536,"state_size":16,"num_hidden_layers":24,"conv_kernel":4,
        "use_bias":false,"use_conv_bias":true,"time_step_rank":48})",
       129'135'360},
      {R"({"model_type":"falcon_mamba","vocab_size":65024,"hidden_size":4096,"intermediate_size":8192,"state_size":16,"num_hidden_layers":64,
        "conv_kernel":4,"use_bias":false,"use_conv_bias":true,"time_step_rank":256,"mixer_rms_eps":1e-06,"tie_word_embeddings":false})",
       7'272'665'088},
      {R"({"model_type":"mamba2","vocab_size":50288,"hidden_size":768,"num_heads":24,"head_dim":64,"state_size":128,"num_hidden_layers":24,
        "layer_norm_epsilon":1e-05,"conv_kernel":4,"n_groups":1,"use_bias":false,"use_conv_bias":true,"tie_word_embeddings":true})",
       128'989'632},
      {R"({"model_type":"falcon_h1","hidden_size":1024,"intermediate_size":2048,"num_hidden_layers":36,"num_attention_heads":8,"head_dim":64,
        "num_key_value_heads":2,"vocab_size":32784,"mamba_d_ssm":1536,"mamba_n_heads":24,"mamba_d_head":64,"tie_word_embeddings":false})",
       521'411'104},
      {R"({"model_type":"jamba","hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,
        "attn_layer_offset":4,"attn_layer_period":8,"expert_layer_offset":1,"expert_layer_period":2,"mamba_d_conv":4,"mamba_d_state":16,
        "mamba_expand":2,"mamba_dt_rank":256,"num_experts":16,"num_experts_per_tok":2,"rms_norm_eps":1e-06,"max_position_embeddings":262144,
        "vocab_size":65536,"tie_word_embeddings":false})",
       51'570'323'328},
      {R"({"model_type":"recurrent_gemma","hidden_size":2560,"intermediate_size":15360,"num_hidden_layers":26,"num_attention_heads":10,
        "attention_window_size":2048,"vocab_size":256000,"rms_norm_eps":1e-06,"logits_soft_cap":30.0,"conv1d_width":4,
        "block_types":["recurrent","recurrent","attention"]})",
       2'682'862'080 + 2560 * 256'000LL},  // and a head, which goes where the file has none
      {R"({"model_type":"rwkv7","hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"head_dim":64,"vocab_size":65536,"norm_eps":1e-05,
        "decay_low_rank_dim":64,"a_low_rank_dim":64,"v_low_rank_dim":32,"gate_low_rank_dim":128})",
       191'034'624},
      {R"({"model_type":"lfm2_moe","hidden_size":2048,"intermediate_size":7168,"moe_intermediate_size":1792,"num_hidden_layers":24,"num_experts":32,
        "num_experts_per_tok":4,"norm_topk_prob":true,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":128000,
        "use_expert_bias":true,"num_dense_layers":2,"norm_eps":1e-05,"conv_bias":false,"conv_L_cache":3,"vocab_size":65536,
        "full_attn_idxs":[2,6,10,14,18,21]})",
       8'339'929'856 + 22 * 32}};  // the card leaves the 22 layers' corrections out, which are no parameters there
  for (const auto& [config, parameters] : models) EXPECT_EQ(parameters_of(spec_from_config(json::parse(config))), parameters) << config;
}

const Mamba2& mixer(const ModelSpec& spec) { return *find_op<Mamba2>(spec.blocks[0]); }

TEST(Recurrent, LimitsOfTimeStepsAreReadInEverySpelling) {
  const auto limits = [](const char* type, const json& value) {
    auto config = oracle::tiny_config(type);
    config["time_step_limit"] = value;
    const auto spec = spec_from_config(config);
    return std::pair{mixer(spec).recurrence.least, mixer(spec).recurrence.most};
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const json tagged = {0.0, {{"__float__", "Infinity"}}};
  for (const char* type : {"mamba2", "nemotron_h", "granitemoehybrid"}) {
    EXPECT_EQ(limits(type, tagged), (std::pair{0.0, kInfinity}));
    EXPECT_EQ(limits(type, {0.5, 2}), (std::pair{0.5, 2.0}));
    EXPECT_THROW(limits(type, {0.5}), Error);
    EXPECT_THROW(limits(type, {2.0, 0.5}), Error);
    EXPECT_THROW(limits(type, {{{"__float__", "NaN"}}, 1.0}), Error);
  }
  EXPECT_EQ(limits("nemotron_h", nullptr), (std::pair{0.0, kInfinity}));
  EXPECT_EQ(limits("granitemoehybrid", nullptr), (std::pair{0.001, 100.0}));
  // transformers does not write these, and mlx_lm opens no model without them.
  const auto settled = spec_from_config(oracle::tiny_config("mamba2")).settled;
  EXPECT_EQ(settled.at("time_step_limit"), tagged);
}

TEST(Recurrent, WhatMlxLmDoesNotRunIsRefused) {
  const std::vector<std::tuple<const char*, json, const char*>> faults = {
      {"nemotron_h", {{"hybrid_override_pattern", "MX*"}}, "are not all Mamba"},
      {"nemotron_h", {{"hybrid_override_pattern", "MM-"}}, "attention (*)"},
      {"nemotron_h", {{"hybrid_override_pattern", nullptr}, {"layers_block_type", {"mamba", "sliding"}}}, "are not all Mamba"},
      {"nemotron_h", {{"n_groups", 3}}, "cannot be cut into 3 groups"},
      {"nemotron_h", {{"n_group", 4}}, "cannot be kept"},
      {"granitemoehybrid", {{"layer_types", {"mamba", "window"}}}, "where mlx_lm knows attention and mamba"},
      {"granitemoehybrid", {{"logits_scaling", 0}}, "logits are divided by it"},
      {"falcon_h1", {{"mamba_d_ssm", 96}}, "is not 4 heads of 16"},
      {"falcon_h1", {{"ssm_multipliers", {1.0}}}, "ssm_multipliers"},
      {"plamo2", {{"mamba_step", 4}}, "too few for \"mamba_step\" 4"},
      {"jamba", {{"attn_layer_offset", 5}}, "is of kind \"attention\""},
      {"recurrent_gemma", {{"block_types", {"recurrent"}}}, "has no attention"},
      {"rwkv7", {{"head_dim", 24}}, "is no multiple of \"head_dim\" 24"},
  };
  for (const auto& [type, changes, part] : faults) {
    const auto said = oracle::refusal_of(type, changes);
    EXPECT_NE(said.find(part), std::string::npos) << type << " " << changes.dump() << ": " << (said.empty() ? "accepted" : said);
  }
}

// Kinds of layers as transformers has spelled them since 5.13.
TEST(Recurrent, KindsOfLayersAreSettledAsMlxLmReadsThem) {
  auto config = oracle::tiny_config("granitemoehybrid");
  config["layer_types"] = {"linear_attention", "full_attention"};
  EXPECT_EQ(spec_from_config(config).settled.at("layer_types"), (json{"mamba", "attention"}));
  config = oracle::tiny_config("nemotron_h");
  config.erase("hybrid_override_pattern");
  config["layer_types"] = {"linear_attention", "moe", "full_attention", "mlp"};
  config.erase("num_hidden_layers");
  EXPECT_EQ(spec_from_config(config).blocks.size(), 4u);
}

// Multipliers are in the weights already unless the taps are in torch's layout; a product with a number is rounded as MLX rounds a Python scalar's.
TEST(Recurrent, TapsTellWhetherFalconH1MultipliesItsWeights) {
  auto config = oracle::tiny_config("falcon_h1");
  config["ssm_multipliers"] = {0.5, 1.5, 0.7, 1.25, 0.3};
  const auto spec = spec_from_config(config);
  auto tensors = oracle::random_tensors(spec, 3);
  for (auto& [name, value] : tensors) value = mx::astype(value, mx::bfloat16);
  const auto load = [&](const std::string& name) {
    const oracle::Folder folder(config, tensors);
    auto value = Model::open(checkpoint::Checkpoint::open(folder.path())).load_all(mx::bfloat16).at(name);
    value.eval();  // while the folder is there
    return value;
  };
  const std::string input = "model.layers.0.mamba.in_proj.weight", down = "model.layers.1.feed_forward.down_proj.weight";
  EXPECT_TRUE(mx::array_equal(load(input), tensors.at(input)).item<bool>());
  for (auto& [name, value] : tensors)
    if (name.ends_with("conv1d.weight")) value = mx::contiguous(mx::swapaxes(value, 1, 2));
  const auto bf16 = [](float value) { return mx::array(value, mx::bfloat16); };
  EXPECT_TRUE(mx::array_equal(load(down), mx::multiply(tensors.at(down), bf16(0.5859375f))).item<bool>());
  std::vector<mx::array> factors;
  const int widths[] = {64, 64, 16, 16, 4};
  for (int part = 0; part < 5; ++part) factors.push_back(mx::full({widths[part]}, config["ssm_multipliers"][part].get<float>(), mx::bfloat16));
  const auto column = mx::expand_dims(mx::multiply(bf16(1.25f), mx::concatenate(factors)), 1);
  EXPECT_TRUE(mx::array_equal(load(input), mx::multiply(tensors.at(input), column)).item<bool>());
  EXPECT_EQ(load("model.layers.0.mamba.conv1d.weight").shape(), (mx::Shape{96, 4, 1}));
}

TEST(Recurrent, NemotronHKeepsTheDtypeOfDecaysAndCorrections) {
  const auto spec = spec_from_config(oracle::tiny_config("nemotron_h"));
  std::vector<std::string> kept;
  for (const auto& block : spec.blocks)
    for (const auto* parameter : block.parameters())
      if (parameter->keeps_dtype) kept.push_back(parameter->path);
  EXPECT_EQ(kept, (std::vector<std::string>{"backbone.layers.0.mixer.A_log", "backbone.layers.1.mixer.gate.e_score_correction_bias"}));
}

}  // namespace
}  // namespace lquant::model
