#include "codec/foreign_config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json.h"

namespace lquant::codec {
namespace {

using nlohmann::json;

std::optional<Foreign> read(const std::string& block) { return foreign_of({{"quantization_config", json::parse(block)}}); }

std::string refusal(const std::string& block) {
  try {
    read(block);
  } catch (const Error& e) {
    return e.what();
  }
  return "taken";
}

constexpr const char* kStart = "[codec] config.json: quantization_config: ";
constexpr const char* kEnd = "; give the unquantized model";

TEST(ForeignConfig, KnowsWhatIsMlxsOwn) {
  EXPECT_FALSE(foreign_of(json::object()));
  EXPECT_FALSE(foreign_of(json::array()));
  EXPECT_FALSE(foreign_of({{"quantization_config", nullptr}}));
  EXPECT_FALSE(read(R"({"bits": 4, "group_size": 64})"));
  EXPECT_FALSE(foreign_of({{"quantization", json::object({{"bits", 4}})}, {"quantization_config", {{"quant_method", "awq"}}}}));
  EXPECT_EQ(foreign_of({{"text_config", {{"quantization_config", {{"quant_method", "fp8"}}}}}})->method, "fp8");
}

TEST(ForeignConfig, ReadsFp8) {
  const auto blocks = read(R"({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 64],
                               "modules_to_not_convert": ["lm_head", "mlp.gate"]})");
  EXPECT_EQ(blocks->schemes[0].layout, Layout::fp8);
  EXPECT_EQ(blocks->schemes[0].block_rows, 128);
  EXPECT_EQ(blocks->schemes[0].block_columns, 64);
  EXPECT_EQ(scheme_of(*blocks, "model.layers.1.mlp.gate"), nullptr);
  EXPECT_EQ(scheme_of(*blocks, "model.layers.1.mlp.up_proj"), &blocks->schemes[0]);
  EXPECT_EQ(read(R"({"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": null})")->schemes[0].block_rows, 0);
}

TEST(ForeignConfig, ReadsMicroscaling) {
  EXPECT_EQ(read(R"({"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn"]})")->schemes[0].layout, Layout::mxfp4_blocks);
  const auto rows = read(R"({"quant_method": "mxfp8"})");
  EXPECT_EQ(rows->schemes[0].layout, Layout::fp8);
  EXPECT_EQ(rows->schemes[0].block_rows, 1);
  EXPECT_EQ(rows->schemes[0].block_columns, 32);
}

TEST(ForeignConfig, ReadsAwq) {
  const auto awq =
      read(R"({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM", "zero_point": true, "modules_to_not_convert": null})");
  EXPECT_EQ(awq->schemes[0].group, 64);
  EXPECT_FALSE(awq->schemes[0].symmetric);
  EXPECT_EQ(refusal(R"({"quant_method": "awq", "version": "gemv"})"),
            std::string(kStart) + "\"version\" is \"gemv\", not gemm, the one packing of AWQ that is read" + kEnd);
  EXPECT_EQ(refusal(R"({"quant_method": "awq", "bits": 3})"), std::string(kStart) + "\"bits\" is 3, not 4" + kEnd);
}

TEST(ForeignConfig, ReadsGptq) {
  const auto first = read(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": false, "damp_percent": 0.01})");
  EXPECT_TRUE(first->schemes[0].zeros_less_one);
  EXPECT_TRUE(first->schemes[0].act_order);
  EXPECT_FALSE(first->schemes[0].symmetric);
  const auto own = read(R"({"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2",
                            "dynamic": {"-:.*\\.gate$": {}, "+:.*down_proj$": {"bits": 8, "group_size": 32}}})");
  EXPECT_EQ(scheme_of(*own, "m.0.gate"), nullptr);
  EXPECT_EQ(scheme_of(*own, "m.0.down_proj")->bits, 8);
  EXPECT_EQ(scheme_of(*own, "m.0.down_proj")->group, 32);
  EXPECT_EQ(scheme_of(*own, "m.0.up_proj")->bits, 4);
  EXPECT_EQ(scheme_of(*own, "m.0.up_proj")->group, 0);
  EXPECT_FALSE(scheme_of(*own, "m.0.up_proj")->zeros_less_one);
  EXPECT_EQ(refusal(R"({"quant_method": "gptq", "bits": 3, "meta": {"quantizer": ["gptqmodel:2.0"]}})"),
            std::string(kStart) + "describes 3-bit weights in GPTQ's first format written by GPTQModel, whose zero points cannot be told" + kEnd);
  EXPECT_TRUE(read(R"({"quant_method": "gptq", "bits": 3, "checkpoint_format": "gptq_v2", "meta": {"quantizer": ["gptqmodel:2.0"]}})"));
}

TEST(ForeignConfig, ReadsCompressedTensors) {
  const auto one = read(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*mlp.gate$"],
      "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null,
        "weights": {"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32, "actorder": "weight"}}}})");
  EXPECT_EQ(one->schemes[0].layout, Layout::packed_ints);
  EXPECT_EQ(one->schemes[0].group, 32);
  EXPECT_FALSE(one->schemes[0].act_order);
  EXPECT_EQ(scheme_of(*one, "lm_head"), nullptr);
  EXPECT_EQ(scheme_of(*one, "model.layers.3.mlp.gate"), nullptr);
  EXPECT_NE(scheme_of(*one, "model.layers.3.mlp.gate_proj"), nullptr);
  // A name goes before a pattern, a pattern before a class; each group has a format of its own.
  const auto mixed = read(R"({"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
      "a": {"targets": ["Linear"], "format": "nvfp4-pack-quantized", "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}},
      "b": {"targets": ["re:.*down_proj"], "format": "float-quantized", "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}},
      "c": {"targets": ["m.0.down_proj"], "format": "int-quantized", "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}})");
  EXPECT_EQ(scheme_of(*mixed, "m.0.down_proj")->layout, Layout::ints);
  EXPECT_EQ(scheme_of(*mixed, "m.1.down_proj")->layout, Layout::fp8);
  EXPECT_EQ(scheme_of(*mixed, "m.1.down_proj")->block_columns, 128);
  EXPECT_EQ(scheme_of(*mixed, "m.1.up_proj")->layout, Layout::nvfp4);
}

TEST(ForeignConfig, RefusesOtherMethodsWithASentence) {
  for (const char* method : {"bitsandbytes", "hqq", "quanto", "aqlm", "bitnet", "exl2", "torchao"}) {
    EXPECT_EQ(refusal(fmt::format(R"({{"quant_method": "{}", "load_in_4bit": true}})", method)),
              fmt::format("{}was written by \"{}\", whose tensors are not read (fp8, compressed-tensors, awq, gptq, mxfp4, mxfp8 and modelopt are){}",
                          kStart, method, kEnd));
  }
}

TEST(ForeignConfig, RefusesHostileValues) {
  const std::vector<std::string> values{"null",
                                        "true",
                                        "-1",
                                        "0",
                                        "1",
                                        "3",
                                        "1e300",
                                        "-9223372036854775808",
                                        "18446744073709551615",
                                        "2.5",
                                        "\"x\"",
                                        "\"\"",
                                        "[]",
                                        "{}",
                                        "[[]]",
                                        "[1e99]",
                                        "[0, 0]",
                                        "[-1, 128]",
                                        "[1]",
                                        "[1,2,3]",
                                        "[\"a\"]",
                                        "[null]",
                                        "{\"a\": 1}",
                                        "{\"a\": {}}",
                                        "\"\\u0000\""};
  const std::vector<std::string> blocks{
      R"({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "modules_to_not_convert": ["a"], "ignored_layers": []})",
      R"({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true, "modules_to_not_convert": []})",
      R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true, "checkpoint_format": "gptq", "meta": {"quantizer": 1},
          "dynamic": {"+:a": {"bits": 4, "group_size": 32, "sym": true, "desc_act": false}}})",
      R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["re:a"], "sparsity_config": {"format": "dense"},
          "config_groups": {"g": {"targets": ["Linear"], "format": "pack-quantized", "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
          "group_size": 32, "actorder": null}}}})",
      R"({"quant_method": "compressed-tensors", "format": "float-quantized",
          "config_groups": {"g": {"targets": ["re:.*"], "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}}}})",
      R"({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head*"], "quantization": null})",
      R"({"quant_method": "mxfp4", "modules_to_not_convert": ["a"]})"};
  int refused = 0;
  for (const auto& text : blocks) {
    const auto block = json::parse(text);
    EXPECT_TRUE(foreign_of({{"quantization_config", block}})) << text;
    const auto flat = block.flatten();
    for (const auto& [pointer, old] : flat.items()) {
      // The value at the pointer, and each list or object on the way to it.
      for (auto at = json::json_pointer(pointer); !at.empty(); at.pop_back()) {
        for (const auto& value : values) {
          auto other = block;
          other[at] = json::parse(value);
          try {
            if (const auto made = foreign_of({{"quantization_config", other}})) {
              for (const auto& s : made->schemes)
                EXPECT_TRUE(s.bits >= 2 && s.bits <= 8 && s.group >= 0 && s.group <= 1 << 20 && s.block_rows >= 0) << other;
              EXPECT_FALSE(made->schemes.empty());
              scheme_of(*made, "model.layers.0.mlp.down_proj");
            }
          } catch (const Error& e) {
            ++refused;
            EXPECT_TRUE(std::string(e.what()).starts_with("[codec] config.json: quantization_config")) << e.what();
            EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
          }
        }
      }
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(ForeignConfig, HostilePatternsEndSoon) {
  const auto with = [](const std::string& pattern) {
    return json{{"quantization_config",
                 {{"quant_method", "compressed-tensors"},
                  {"format", "int-quantized"},
                  {"ignore", {"re:" + pattern}},
                  {"config_groups", {{"g", {{"targets", {"Linear"}}, {"weights", {{"num_bits", 8}}}}}}}}}};
  };
  EXPECT_NE(scheme_of(*foreign_of(with("(a+)+b")), std::string(300, 'a')), nullptr);
  EXPECT_NE(scheme_of(*foreign_of(with("(a|a|aa)*b")), std::string(300, 'a')), nullptr);
  for (const auto& pattern : {std::string("["), std::string("(?<x>"), std::string("*"), std::string("a{100000}{100000}"), std::string(1 << 20, '(')})
    EXPECT_THROW(foreign_of(with(pattern)), Error) << pattern.substr(0, 20);
  const auto deep = with(std::string(490, '(') + std::string(490, ')'));
  EXPECT_NO_THROW(scheme_of(*foreign_of(deep), std::string(300, 'a')));
}

}  // namespace
}  // namespace lquant::codec
