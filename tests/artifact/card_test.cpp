#include "artifact/card.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string_view>

#include "artifact/record.h"
#include "base/error.h"
#include "base/temp.h"
#include "lquant/version.h"

namespace lquant::artifact {
namespace {
using nlohmann::json;
namespace fs = std::filesystem;

json uniform_record() {
  return {{"lquant", "9.9"},
          {"command", "dwq"},
          {"options", {{"bits", 3}, {"group_size", 64}, {"num_samples", 512}, {"learning_rate", "auto"}}},
          {"source",
           {{"name", "base"},
            {"repo", "org/base"},
            {"card", "---\nlicense: apache-2.0\nlanguage:\n- en\n- de\nbase_model: somebody/else\n---\n"}}},
          {"bits_per_weight", 3.50421},
          {"parameters", 6553600},
          {"bytes", 2870000},
          {"formats", {{{"mode", "affine"}, {"bits", 3}, {"group_size", 64}, {"linears", 43}}}},
          {"quality", {{"validation_kl", 0.08123}, {"validation_kl_start", 0.1863}}}};
}

constexpr const char* kUse = R"(## Use with mlx_lm

```sh
pip install mlx-lm
mlx_lm.generate --model SHELL --prompt "Hello"
```

```python
from mlx_lm import load, generate

model, tokenizer = load(PYTHON)
messages = [{"role": "user", "content": "Hello"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True) if tokenizer.chat_template else "Hello"
print(generate(model, tokenizer, prompt=prompt))
```
)";

constexpr const char* kUniform = R"(---
library_name: "mlx"
pipeline_tag: "text-generation"
base_model: "org/base"
base_model_relation: "quantized"
license: "apache-2.0"
language:
- "en"
- "de"
tags:
- "mlx"
- "lquant"
- "quantized"
- "3-bit"
---

# base-3bit

[org/base](https://huggingface.co/org/base), made small by [lquant](HOME) 9.9.

| | |
| --- | --- |
| bits per weight | 3.504 |
| size of the weights | 2.87 MB |
| parameters | 6.6 million |
| method | DWQ: trained to predict what the original predicts |
| format | affine 3 bits, groups of 64 |
| KL to the original on held-out rows | 0.0812 nats/token (before training 0.1863) |

USE
## How it was made

```sh
lquant dwq --model org/base --bits 3 --group-size 64 --num-samples 512 --mlx-path base-3bit
```

All options, versions and hashes stand in `lquant.json`.
)";

// On this machine, with a space and a quote in its name; measured and evaluated afterwards.
constexpr const char* kMixed = R"(---
library_name: "mlx"
pipeline_tag: "text-generation"
tags:
- "mlx"
- "lquant"
- "quantized"
---

# it's small

`tiny`, made small by [lquant](HOME) 9.9.

| | |
| --- | --- |
| bits per weight | 3.499 |
| size of the weights | 2.87 MB |
| parameters | 6.6 million |
| method | auto: gptq, dwq |
| format | affine 2 bits, groups of 64; affine 6 bits, groups of 32 |
| KL to the original on held-out rows | 0.0500 nats/token |
| perplexity | 8.250 (prose.txt, 4096 tokens), the original 8.000 |
| KL to the original | 0.0412 ± 0.0021 nats/token (prose.txt, 4096 tokens) |

## Tasks

| task | examples | rows | metric | this model | the original |
| --- | --- | --- | --- | --- | --- |
| arc_easy | 5 | 200 | acc | 0.4500 ± 0.0352 | 0.4700 ± 0.0353 |
| boolq | 0 | 1 | acc | 1.0000 | |

USE
## How it was made

```sh
lquant auto --model 'my models/tiny' --target-bpw 3.5 --mlx-path 'it'\''s small'
```

All options, versions and hashes stand in `lquant.json`.
)";

json mixed_record() {
  auto record = uniform_record();
  record["command"] = "auto";
  record["options"] = {{"target_bpw", 3.5}, {"steps", {"gptq", "awq", "dwq"}}};
  record["source"] = {{"name", "tiny"}};
  record["bits_per_weight"] = 3.499;
  record["formats"].push_back({{"mode", "affine"}, {"bits", 6}, {"group_size", 32}, {"linears", 4}});
  record["formats"][0]["bits"] = 2;
  record["quality"] = {{"held_out_kl", 0.05},
                       {"steps", {{{"step", "gptq"}, {"kept", true}}, {{"step", "awq"}, {"kept", false}}, {{"step", "dwq"}, {"kept", true}}}}};
  record["measured"] = {{{"text", "prose.txt"}, {"tokens", 4096}, {"perplexity", 8.25}, {"teacher_perplexity", 8.0}, {"kl", 0.0412}, {"kl_se", 0.0021}}};
  const auto figure = [](double value, json error) { return json{{"acc", {{"value", value}, {"error", error}}}}; };
  record["tasks"] = {
      {"arc_easy", {{"rows", 200}, {"examples", 5}, {"metrics", figure(0.45, 0.0352)}, {"original", figure(0.47, 0.0353)}}},
      {"boolq", {{"rows", 1}, {"examples", 0}, {"metrics", figure(1, nullptr)}}}};
  return record;
}

std::string replaced(std::string text, std::string_view mark, std::string_view by) { return text.replace(text.find(mark), mark.size(), by); }

/// An expected card: with lquant's address, and how to use the model by the name that a shell and that Python read.
std::string expected(const char* card, std::string_view shell, std::string_view python) {
  return replaced(replaced(card, "HOME", LQUANT_HOME), "USE", replaced(replaced(kUse, "SHELL", shell), "PYTHON", python));
}

TEST(Card, OfAUniformModelOnTheHub) {
  const json config{{"quantization", {{"bits", 3}, {"group_size", 64}}}};
  EXPECT_EQ(model_card(uniform_record(), config, names_of_repository("me/base-3bit")), expected(kUniform, "me/base-3bit", "\"me/base-3bit\""));
}

// Calling it by its lowest width was wrong in the title, in the tags and in the command.
TEST(Card, OfAMixedModelOnThisMachine) {
  auto names = names_of("out/it's small/");
  names.source = "my models/tiny";
  EXPECT_EQ(model_card(mixed_record(), {{"quantization", {{"bits", 2}}}}, names), expected(kMixed, R"('out/it'\''s small')", R"("out/it's small")"));
}

TEST(Card, OfARecordWithoutFormatsHasTheWidthsOfTheConfig) {
  auto record = uniform_record();
  record.erase("formats");
  const json same{{"bits", 3}, {"group_size", 64}, {"a", {{"bits", 3}, {"group_size", 32}}}, {"b", false}};
  const json other{{"bits", 3}, {"group_size", 64}, {"a", {{"bits", 6}, {"group_size", 64}}}};
  const auto names = names_of_repository("me/x");
  EXPECT_NE(model_card(record, {{"quantization", same}}, names).find("- \"3-bit\""), std::string::npos);
  EXPECT_EQ(model_card(record, {{"quantization", other}}, names).find("-bit\""), std::string::npos);
  EXPECT_EQ(model_card(record, json::object(), names).find("quantized\""), std::string::npos);
}

TEST(Card, SurvivesNamesThatAreNoText) {
  auto record = uniform_record();
  record["source"] = {{"name", "a|b\nc"}, {"card", "---\nlicense: [\n---\n"}};
  const auto card = model_card(record, json::object(), names_of("o\xfft"));
  EXPECT_NE(card.find("# o\xef\xbf\xbdt\n"), std::string::npos);
  EXPECT_NE(card.find("`a b c`"), std::string::npos);
  EXPECT_NO_THROW(json(card).dump());
  EXPECT_TRUE(is_ours(card));
}

struct Made {
  testing::TempFolder temp;
  fs::path folder = temp / "made";
  Made() {
    fs::create_directory(folder);
    put("lquant.json", uniform_record().dump());
    put("config.json", "{}");
    put("README.md", model_card(uniform_record(), json::object(), names_of(folder)));
  }
  void put(const char* name, const std::string& text) const { std::ofstream(folder / name) << text; }
  std::string get(const char* name) const {
    std::ifstream in(folder / name);
    return {std::istreambuf_iterator<char>(in), {}};
  }
};

TEST(Record, FiguresGoIntoTheRecordAndTheCardBesideIt) {
  const Made made;
  add_measured(made.folder, {{"text", "a.txt"}, {"tokens", 10}, {"perplexity", 9.0}});
  add_measured(made.folder, {{"text", "b.txt"}, {"tokens", 10}, {"perplexity", 7.0}});
  add_measured(made.folder, {{"text", "a.txt"}, {"tokens", 20}, {"perplexity", 8.0}});
  add_tasks(made.folder, {{"boolq", {{"rows", 3}, {"metrics", {{"acc", {{"value", 0.25}, {"error", 0.1}}}}}}}});
  const auto record = json::parse(made.get("lquant.json"));
  EXPECT_EQ(record.at("measured").size(), 2u);
  const auto card = made.get("README.md");
  EXPECT_NE(card.find("| perplexity | 8.000 (a.txt, 20 tokens) |"), std::string::npos) << card;
  EXPECT_NE(card.find("| boolq | 0 | 3 | acc | 0.2500 ± 0.1000 |"), std::string::npos) << card;
  // Under a repository's name it is the same card but for the names.
  EXPECT_NE(card_of_folder(made.folder, names_of_repository("me/made")).find("mlx_lm.generate --model me/made "), std::string::npos);
}

TEST(Record, ErrorsThatAreNotKnownAreLeftOut) {
  const Made made;
  const auto entry = [](const char* text, const json& error) {
    return json{{"text", text}, {"tokens", 10}, {"perplexity", 9.0}, {"perplexity_se", error}, {"kl", 0.25}, {"kl_se", error}};
  };
  add_measured(made.folder, entry("null.txt", nullptr));
  add_measured(made.folder, entry("none.txt", NAN));
  add_measured(made.folder, entry("zero.txt", 0.0));
  add_measured(made.folder, entry("known.txt", 0.5));
  const auto card = made.get("README.md");
  for (const char* text : {"null.txt", "none.txt", "zero.txt"})
    EXPECT_NE(card.find(fmt::format("| KL to the original | 0.2500 nats/token ({}, 10 tokens) |", text)), std::string::npos) << card;
  EXPECT_NE(card.find("| 0.2500 ± 0.5000 nats/token (known.txt, 10 tokens) |"), std::string::npos) << card;
  EXPECT_TRUE(json::parse(made.get("lquant.json")).at("measured").at(1).at("kl_se").is_null());
}

TEST(Record, DamagedFrontMatterNamesItsFile) {
  const Made made;
  for (const auto& yaml : {std::string("license: [mit"), std::string("- mit"), std::string("tags: \"x"), std::string(100'000, '[')}) {
    made.put("README.md", "---\n" + yaml + "\n---\nWords.\n");
    for (const bool adding : {true, false}) {
      try {
        adding ? add_tasks(made.folder, json::object()) : static_cast<void>(card_of_folder(made.folder, names_of_repository("me/made")));
        ADD_FAILURE() << "accepted: " << yaml.substr(0, 20);
      } catch (const Error& e) {
        const std::string text = e.what();
        EXPECT_NE(text.find((made.folder / "README.md").string() + ": the card's front matter is no"), std::string::npos) << text;
        EXPECT_LT(text.size(), 400u);
      }
    }
  }
}

TEST(Record, ACardOfSomebodyElseStays) {
  const Made made;
  made.put("README.md", "---\nlicense: mit\n---\nMy own words.\n");
  add_measured(made.folder, {{"text", "a.txt"}, {"tokens", 10}, {"perplexity", 9.0}});
  EXPECT_EQ(made.get("README.md"), "---\nlicense: mit\n---\nMy own words.\n");
  EXPECT_EQ(card_of_folder(made.folder, names_of_repository("me/made")), made.get("README.md"));
  fs::remove(made.folder / "README.md");
  fs::remove(made.folder / "lquant.json");
  EXPECT_THROW(card_of_folder(made.folder, names_of_repository("me/made")), Error);
  EXPECT_THROW(add_tasks(made.folder, json::object()), Error);
  made.put("lquant.json", "{}");
  EXPECT_THROW(card_of_folder(made.folder, names_of_repository("me/made")), Error);
}

TEST(Record, WhatSomebodyChangedInItIsNoReasonToFail) {
  const Made made;
  const auto files = FileSet::of_folder(made.folder);
  EXPECT_EQ(record_of(files).at("command"), "dwq");
  for (const auto& text : {std::string("{"), std::string("[1]"), std::string("null"), std::string(100'000, '[') + std::string(100'000, ']')}) {
    made.put("lquant.json", text);
    EXPECT_EQ(record_of(files), json::object());
  }
  fs::remove(made.folder / "lquant.json");
  EXPECT_EQ(record_of(files), json::object());
  auto record = uniform_record();
  record["measured"] = {{{"text", 5}}, "x", {{"text", "a.txt"}, {"perplexity", 1.0}}};
  made.put("lquant.json", record.dump());
  fs::remove(made.folder / "README.md");
  add_measured(made.folder, {{"text", "a.txt"}, {"tokens", 10}, {"perplexity", 9.0}});
  EXPECT_EQ(record_of(files).at("measured").back().at("perplexity"), 9.0);
}

TEST(Record, ComplaintsNameTheFile) {
  const Made made;
  made.put("README.md", "---\nlicense: [\n---\n");
  try {
    card_of_folder(made.folder, names_of_repository("me/made"));
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find((made.folder / "README.md").string() + ": "), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace lquant::artifact
