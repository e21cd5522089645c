// The families' rows of GGUF's architectures, where they say more than names. tests/cli/test_gguf.py compares whole models.
#include "model/family/gguf.h"

#include "checkpoint/gguf_bytes.h"
#include "checkpoint/support.h"
#include "model/model.h"

namespace lquant::model {
namespace {

using lquant::testing::error_of;
using lquant::testing::Folder;
using lquant::testing::Gguf;
using lquant::testing::small_model;
namespace gguf = checkpoint::gguf;

const gguf::Architecture& row(const char* name, bool experts = false) {
  return *gguf::find_architecture(family::gguf_architectures(), name, experts);
}

nlohmann::json config_of(const Gguf& file) {
  const Folder folder;
  folder.put("model.gguf", file.bytes());
  return open_checkpoint(folder / "model.gguf").config();
}

/// A model of so many blocks without their tensors, which the config does not need.
Gguf empty_blocks(const std::string& architecture, std::uint32_t count) {
  auto file = small_model(architecture).replace(architecture + ".block_count", Gguf::u32(count));
  std::erase_if(file.tensors, [](const std::string& entry) { return entry.find("blk.") != entry.npos; });
  return file;
}

TEST(GgufFamilies, AreInOrder) {
  EXPECT_EQ(fmt::format("{}", fmt::join(gguf::architecture_names(family::gguf_architectures()), " ")),
            "gemma gemma2 gemma3 llama phi3 qwen2 qwen3 qwen3moe smollm3");
}

TEST(GgufFamilies, NamesOfExperts) {
  const auto names = [](const gguf::Architecture& architecture, const char* gguf) {
    std::string all;
    for (const auto& mapped : gguf::map_name(architecture, gguf)) all += mapped.name + " ";
    return all;
  };
  const auto& mixtral = row("llama", true);
  EXPECT_EQ(names(mixtral, "blk.12.ffn_gate_exps.weight"), "model.layers.12.block_sparse_moe.switch_mlp.gate_proj.weight ");
  EXPECT_EQ(names(mixtral, "blk.12.ffn_down.7.weight"), "model.layers.12.block_sparse_moe.experts.7.w2.weight ");
  EXPECT_EQ(names(row("qwen3moe", true), "blk.0.ffn_gate_up_exps.weight"),
            "model.layers.0.mlp.switch_mlp.gate_proj.weight model.layers.0.mlp.switch_mlp.up_proj.weight ");
}

TEST(GgufFamilies, MixtralCallsItselfLlama) {
  EXPECT_STREQ(row("llama").model_type, "llama");
  auto file = empty_blocks("llama", 1).value("llama.expert_count", Gguf::u32(2)).value("llama.expert_used_count", Gguf::u32(1));
  const auto config = config_of(file);
  EXPECT_EQ(config["model_type"], "mixtral");
  EXPECT_EQ(config["num_local_experts"], 2);
  EXPECT_EQ(config["num_experts_per_tok"], 1);
}

TEST(GgufFamilies, LargestGemmasScaleByTheirWidth) {
  const auto scalar = [](const std::string& architecture, std::uint32_t layers) {
    auto file = empty_blocks(architecture, layers);
    file.value(architecture + ".attention.key_length", Gguf::u32(6));
    return config_of(file)["query_pre_attn_scalar"].get<int>();
  };
  EXPECT_EQ(scalar("gemma2", 26), 6);
  EXPECT_EQ(scalar("gemma2", 46), 4);
  EXPECT_EQ(scalar("gemma2", 62), 6);
  EXPECT_EQ(scalar("gemma3", 34), 6);
  EXPECT_EQ(scalar("gemma3", 62), 4);
}

TEST(GgufFamilies, GemmasActivationHasAFieldOfItsOwn) {
  for (const char* architecture : {"gemma", "gemma2", "gemma3"}) {
    const auto config = config_of(empty_blocks(architecture, 1));
    EXPECT_EQ(config["hidden_activation"], "gelu_pytorch_tanh") << architecture;
    EXPECT_FALSE(config.contains("hidden_act")) << architecture;
  }
}

TEST(GgufFamilies, WindowsAndTheirPattern) {
  const auto pattern = [](const std::string& typed, std::uint32_t window = 16) {
    auto file = empty_blocks("gemma3", 7).value("gemma3.attention.sliding_window", Gguf::u32(window));
    if (!typed.empty()) file.value("gemma3.attention.sliding_window_pattern", typed);
    return config_of(file)["sliding_window_pattern"].get<int>();
  };
  EXPECT_EQ(pattern(""), 6);
  EXPECT_EQ(pattern("", 0), 1);
  EXPECT_EQ(pattern(Gguf::u32(3)), 3);
  EXPECT_EQ(pattern(Gguf::bools({1, 1, 0, 1, 1, 0, 1})), 3);
  EXPECT_NE(error_of([&] {
              pattern(Gguf::bools({1, 0, 0, 1, 1, 0, 1}));
            }).find("model.gguf: its gemma3.attention.sliding_window_pattern is no regular pattern"),
            std::string::npos);
}

TEST(GgufFamilies, SomeLayersAreDense) {
  auto file = empty_blocks("qwen3moe", 3).ones("blk.1.ffn_gate.weight", {8, 8});
  for (const char* key : {"expert_count", "expert_used_count", "expert_feed_forward_length"})
    file.value(std::string("qwen3moe.") + key, Gguf::u32(4));
  EXPECT_EQ(config_of(file)["mlp_only_layers"], nlohmann::json({1}));
}

TEST(GgufFamilies, SomeTokensTakeBlanks) {
  const auto takes = row("phi3").takes_blanks;
  for (const char* token : {"<|end|>", "<|user|>", "</s>"}) EXPECT_TRUE(takes(token)) << token;
  for (const char* token : {"<unk>", "<s>", "<|endoftext|>"}) EXPECT_FALSE(takes(token)) << token;
}

}  // namespace
}  // namespace lquant::model
