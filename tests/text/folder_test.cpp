#include "text/folder.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "text/temp_folder.h"
#include "text/tokenizer.h"

namespace lquant::text {
namespace {

using Ids = std::vector<int>;

using nlohmann::json;

std::string open_error(const TempFolder& folder) {
  return message_of([&] { Tokenizer::open(folder.path()); });
}

TEST(Folder, TokenizerFileMustExist) {
  TempFolder folder;
  EXPECT_TRUE(has(open_error(folder), "[text] ", "tokenizer.json: not found", "save_pretrained"));
}

TEST(Folder, TokenizerFileAloneIsEnough) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer());
  const auto tokenizer = Tokenizer::open(folder.path());
  EXPECT_EQ(tokenizer.encode("a b c"), (Ids{2, 3, 0}));
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
  EXPECT_TRUE(tokenizer.eos_ids().empty());
  EXPECT_FALSE(tokenizer.has_chat_template());
  EXPECT_TRUE(tokenizer.config().empty());
}

TEST(Folder, PostProcessorDecidesOnSpecialTokens) {
  auto content = word_tokenizer();
  content["post_processor"] = {{"type", "TemplateProcessing"},
                               {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
                               {"pair", json::array({{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}})},
                               {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {4}}, {"tokens", {"<s>"}}}}}}};
  TempFolder folder;
  folder.write("tokenizer.json", content).write("tokenizer_config.json", json{{"add_bos_token", false}, {"bos_token", "<s>"}});
  const auto tokenizer = Tokenizer::open(folder.path());
  EXPECT_EQ(tokenizer.encode("a"), (Ids{4, 2}));
  EXPECT_EQ(tokenizer.encode("a", false), (Ids{2}));
}

TEST(Folder, TruncationAndPaddingOfTheFileAreOff) {
  auto content = word_tokenizer();
  content["truncation"] = {{"direction", "Right"}, {"max_length", 1}, {"strategy", "LongestFirst"}, {"stride", 0}};
  content["padding"] = {{"strategy", {{"Fixed", 9}}}, {"direction", "Right"}, {"pad_to_multiple_of", nullptr}, {"pad_id", 0},
                        {"pad_type_id", 0},           {"pad_token", "<unk>"}};
  TempFolder folder;
  folder.write("tokenizer.json", content);
  EXPECT_EQ(Tokenizer::open(folder.path()).encode("a b a"), (Ids{2, 3, 2}));
}

TEST(Folder, EndsComeFromTheModelThenTheTokenizer) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer()).write("tokenizer_config.json", json{{"eos_token", {{"content", "</s>"}}}});
  EXPECT_EQ(Tokenizer::open(folder.path()).eos_ids(), (Ids{1}));
  folder.write("config.json", json{{"eos_token_id", 3}});
  EXPECT_EQ(Tokenizer::open(folder.path()).eos_ids(), (Ids{3, 1}));
  folder.write("generation_config.json", json{{"eos_token_id", {2, 1}}});
  EXPECT_EQ(Tokenizer::open(folder.path()).eos_ids(), (Ids{2, 1})) << "generation_config.json goes before config.json";
  folder.write("generation_config.json", json{{"eos_token_id", nullptr}});
  EXPECT_EQ(Tokenizer::open(folder.path()).eos_ids(), (Ids{3, 1}));
}

TEST(Folder, NamedTokensAreAddedAndSpecial) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer())
      .write("tokenizer_config.json", json{{"bos_token", "<s>"}, {"pad_token", "<pad>"}, {"extra_special_tokens", {"<x>"}}});
  const auto tokenizer = Tokenizer::open(folder.path());
  EXPECT_EQ(tokenizer.vocab_size(), 7u) << "5 words, <pad> and <x>";
  EXPECT_EQ(tokenizer.bos_id(), 4) << "<s> was a plain word and keeps its id";
  const auto ids = tokenizer.encode("<s>a<pad><x>b");
  EXPECT_EQ(ids.size(), 5u);
  EXPECT_EQ(tokenizer.decode(ids, true), "a b");
}

TEST(Folder, SpecialTokensMapCountsWhereTheConfigHasNoDecoder) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer())
      .write("tokenizer_config.json", json{{"bos_token", "a"}})
      .write("special_tokens_map.json", json{{"bos_token", {{"content", "b"}}}});
  EXPECT_EQ(Tokenizer::open(folder.path()).bos_id(), 3);
  folder.write("tokenizer_config.json", json{{"bos_token", "a"}, {"added_tokens_decoder", {{"9", {{"content", "<new>"}, {"special", true}}}}}});
  const auto tokenizer = Tokenizer::open(folder.path());
  EXPECT_EQ(tokenizer.bos_id(), 2);
  EXPECT_EQ(tokenizer.token_id("<new>"), 5) << "the next free id, as transformers gives it";
}

TEST(Folder, TemplateFileGoesBeforeTheConfig) {
  TempFolder folder;
  // chat_template.json belongs to processors; transformers' tokenizers read nothing from it.
  folder.write("tokenizer.json", word_tokenizer()).write("chat_template.json", json{{"chat_template", "third"}});
  const json messages = json::array({{{"role", "user"}, {"content", "a"}}});
  EXPECT_FALSE(Tokenizer::open(folder.path()).has_chat_template());
  folder.write("tokenizer_config.json", json{{"chat_template", "second"}});
  EXPECT_EQ(Tokenizer::open(folder.path()).apply_chat_template(messages, false), "second");
  folder.write("chat_template.jinja", std::string_view("first"));
  EXPECT_EQ(Tokenizer::open(folder.path()).apply_chat_template(messages, false), "first");
}

TEST(Folder, FaultsAroundTheTokenizerNameTheirFile) {
  const std::vector<std::tuple<const char*, const char*, const char*>> faults = {
      {"tokenizer_config.json", "{\"bos_token\": ", "not valid JSON"},
      {"tokenizer_config.json", "[1, 2]", "JSON object"},
      {"tokenizer_config.json", "{\"added_tokens_decoder\": [1]}", "added_tokens_decoder"},
      {"tokenizer_config.json", "{\"added_tokens_decoder\": {\"-1\": {\"content\": \"x\"}}}", "entry \"-1\""},
      {"tokenizer_config.json", "{\"added_tokens_decoder\": {\"99999999999999999999\": {\"content\": \"x\"}}}", "added_tokens_decoder"},
      {"tokenizer_config.json", "{\"added_tokens_decoder\": {\"1\": {}}}", "entry \"1\""},
      {"tokenizer_config.json", "{\"chat_template\": 5}", "chat_template should be"},
      {"tokenizer_config.json", "{\"chat_template\": [{\"name\": \"default\"}]}", "chat_template should be"},
      {"special_tokens_map.json", "7", "JSON object"},
      {"generation_config.json", "{\"eos_token_id\": \"two\"}", "eos_token_id should be"},
      {"config.json", "{\"eos_token_id\": [1, 2.5]}", "eos_token_id should be"},
      {"config.json", "{\"eos_token_id\": 18446744073709551615}", "eos_token_id should be"},
  };
  for (const auto& [name, bytes, expected] : faults) {
    TempFolder folder;
    folder.write("tokenizer.json", word_tokenizer()).write(name, std::string_view(bytes));
    EXPECT_TRUE(has(open_error(folder), "[text] ", name, expected));
  }
}

TEST(Folder, DeepAndLongFilesAroundTheTokenizerAreRefusedInShort) {
  const std::string deep = std::string(50'000, '[') + std::string(50'000, ']'), long_text(100'000, 'x');
  const std::vector<std::pair<const char*, std::string>> faults = {
      {"tokenizer_config.json", "{\"extra_special_tokens\": " + deep + "}"},
      {"special_tokens_map.json", "{\"bos_token\": " + deep + "}"},
      {"generation_config.json", "{\"eos_token_id\": " + deep + "}"},
      {"config.json", "{\"eos_token_id\": \"" + long_text + "\"}"},
      {"tokenizer_config.json", "{\"added_tokens_decoder\": {\"" + long_text + "\": {\"content\": \"x\"}}}"},
  };
  for (const auto& [name, bytes] : faults) {
    TempFolder folder;
    folder.write("tokenizer.json", word_tokenizer()).write(name, std::string_view(bytes));
    const auto text = open_error(folder);
    EXPECT_TRUE(has(text, "[text] ", name));
    EXPECT_LT(text.size(), 400u);
  }
}

TEST(Folder, OddRolesAreNotTokens) {
  TempFolder folder;
  folder.write("tokenizer.json", word_tokenizer())
      .write("tokenizer_config.json",
             json{{"bos_token", nullptr}, {"eos_token", 5}, {"pad_token", json::array()}, {"extra_special_tokens", {1, nullptr, "<x>"}}});
  const auto tokenizer = Tokenizer::open(folder.path());
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer.vocab_size(), 6u);
}

}  // namespace
}  // namespace lquant::text
