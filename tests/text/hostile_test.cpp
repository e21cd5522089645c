// tokenizer.json comes from strangers. Whatever stands in it, opening and using it ends in a tokenizer or in an Error.

#include <gtest/gtest.h>

#include <random>

#include "base/files.h"
#include "text/shim.h"
#include "text/temp_folder.h"
#include "text/tokenizer.h"

namespace lquant::text {
namespace {

using nlohmann::json;

/// Opens the bytes as a tokenizer and uses it, below the file system, since there are thousands. True when it opened. Failures
/// must come with a message; anything else than the two ends the test binary.
bool survives(const std::string& bytes) {
  lquant_tokenizer* tokenizer = nullptr;
  lquant_string error{};
  if (!lquant_tokenizer_open(slice(bytes), slice("[]"), &tokenizer, &error)) {
    EXPECT_NE(take(error), "");
    return false;
  }
  for (const std::string_view text : {"a b c", "", "<s>日本</s>\n\n  x", "\xff"}) {
    const auto view = slice(text);
    lquant_ids ids{};
    std::size_t end = 0;
    if (!lquant_tokenizer_encode(tokenizer, &view, 1, 1, &ids, &end, &error)) {
      EXPECT_NE(take(error), "");
      continue;
    }
    const OwnedIds owned(ids);
    lquant_string decoded{};
    const bool ok = lquant_tokenizer_decode(tokenizer, owned.begin(), end, 1, &decoded, &error);
    const auto said = take(ok ? decoded : error);
    if (!ok) EXPECT_NE(said, "");
  }
  lquant_tokenizer_vocab_size(tokenizer);
  lquant_tokenizer_close(tokenizer);
  return true;
}

std::string tiny_tokenizer() { return read_file("text", tiny_model() / "tokenizer.json"); }

TEST(Hostile, NotATokenizer) {
  for (const auto* bytes : {"", " ", "null", "[]", "{}", "42", "\"text\"", "{\"model\": null}", "{\"version\": \"9\"}", "\xff\xfe\x00",
                            "{\"model\": {\"type\": \"BPE\"}}"}) {
    EXPECT_FALSE(survives(bytes)) << bytes;
    TempFolder folder;
    folder.write("tokenizer.json", std::string_view(bytes));
    EXPECT_TRUE(has(message_of([&] { Tokenizer::open(folder.path()); }), "[text] ", "tokenizer.json", "not a tokenizer"));
  }
}

TEST(Hostile, Truncated) {
  const auto whole = tiny_tokenizer();
  std::mt19937 random(1);
  for (int i = 0; i < 40; ++i) {
    // Short ones, where the structure changes most, and some of any length. The last brace is always missing.
    const auto size = random() % (i < 30 ? 2000 : whole.size() - 4);
    EXPECT_FALSE(survives(whole.substr(0, size))) << size;
  }
}

TEST(Hostile, DeeplyNested) {
  for (const std::size_t depth : {200u, 100'000u}) {
    EXPECT_FALSE(survives(std::string(depth, '[')));
    EXPECT_FALSE(survives(std::string(depth, '[') + std::string(depth, ']')));
    std::string open, close;
    for (std::size_t i = 0; i < depth; ++i) {
      open += "{\"type\":\"Sequence\",\"normalizers\":[";
      close += "]}";
    }
    EXPECT_FALSE(survives("{\"version\":\"1.0\",\"normalizer\":" + open + close + ",\"model\":" + word_tokenizer()["model"].dump() + "}"));
  }
}

TEST(Hostile, WrongTypesAnywhere) {
  const std::vector<json> wrong = {
      nullptr, true, -1, 1e300, 4294967296, "", "text", json::array(), json::object(), json::array({json::array({1, "x", nullptr})})};
  auto content = word_tokenizer();
  content["normalizer"] = {{"type", "Sequence"},
                           {"normalizers", {{{"type", "NFC"}}, {{"type", "Replace"}, {"pattern", {{"Regex", "x+"}}}, {"content", "y"}}}}};
  content["decoder"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}, {"split", true}};
  ASSERT_TRUE(survives(content.dump()));
  const auto flat = content.flatten();
  for (const auto& [pointer, unused] : flat.items()) {
    // Each value, and each of the objects and lists that hold it, is replaced by each wrong one.
    for (json::json_pointer place(pointer); !place.empty(); place.pop_back()) {
      for (const auto& value : wrong) {
        auto changed = content;
        changed[place] = value;
        survives(changed.dump());
      }
    }
  }
}

TEST(Hostile, NumbersThatPointNowhere) {
  const auto base = word_tokenizer();
  const std::vector<json> models = {
      {{"type", "WordLevel"}, {"vocab", {{"a", 4294967295}, {"b", 0}}}, {"unk_token", "none"}},
      {{"type", "WordLevel"}, {"vocab", {{"a", 4294967296}}}, {"unk_token", "a"}},
      {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 4294967295}, {"ab", 7}}}, {"merges", {"a b"}}},
      {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}}}, {"merges", {"a b"}}},
      {{"type", "BPE"}, {"vocab", {{"a", 0}}}, {"merges", {"a"}}},
      {{"type", "BPE"}, {"vocab", json::object()}, {"merges", json::array()}, {"dropout", 2.0}},
      {{"type", "BPE"}, {"vocab", {{"<0x41>", 0}}}, {"merges", json::array()}, {"byte_fallback", true}, {"unk_token", "absent"}},
      {{"type", "Unigram"}, {"vocab", json::array()}, {"unk_id", 0}},
      {{"type", "Unigram"}, {"vocab", {{"a", -1.0}}}, {"unk_id", 5}},
      {{"type", "Unigram"}, {"vocab", {{"", -1.0}, {"a", 1e308}}}, {"unk_id", 0}},
      {{"type", "WordPiece"}, {"vocab", {{"a", 0}}}, {"unk_token", "absent"}, {"continuing_subword_prefix", ""}, {"max_input_chars_per_word", 0}},
  };
  int opened = 0;
  for (const auto& model : models) {
    auto content = base;
    content["model"] = model;
    content["added_tokens"] = json::array();
    opened += survives(content.dump());
    content["added_tokens"] = {
        {{"id", 4294967295}, {"content", "<s>"}, {"single_word", true}, {"lstrip", true}, {"rstrip", true}, {"normalized", true}, {"special", true}}};
    survives(content.dump());
  }
  EXPECT_GT(opened, 0) << "some of these are odd but usable; none opening would mean that the test tests nothing";
}

TEST(Hostile, PanicsOfTheCrateAreErrors) {
  auto content = word_tokenizer();
  content["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}};  // the crate panics on a map this short
  TempFolder folder;
  folder.write("tokenizer.json", content);
  EXPECT_TRUE(has(message_of([&] { Tokenizer::open(folder.path()); }), "[text] ", "tokenizer.json", "internal fault"));
}

TEST(Hostile, RegularExpressions) {
  for (const auto* pattern : {"(", "[a", "(?P<n>", "a{99999999}", "\\p{NoSuch}", "(a+)+$", "(?<=a*)b", "\\"}) {
    auto content = word_tokenizer();
    content["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    survives(content.dump());
  }
}

TEST(Hostile, RandomDamage) {
  auto content = word_tokenizer();
  content["decoder"] = {{"type", "ByteFallback"}};
  const auto whole = content.dump();
  std::mt19937 random(2);
  for (int i = 0; i < 1500; ++i) {
    auto bytes = whole;
    for (unsigned changes = 1 + random() % 4; changes > 0; --changes) {
      const auto place = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[place] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(place, 1 + random() % 8);
          break;
        default:
          bytes.insert(place, bytes.substr(random() % bytes.size(), random() % 16));
      }
    }
    survives(bytes);
  }
}

TEST(Hostile, TooLargeToBeATokenizer) {
  TempFolder folder;
  folder.write("tokenizer.json", std::string_view("{"));
  std::filesystem::resize_file(folder.path() / "tokenizer.json", std::uintmax_t{1} << 40);  // sparse: takes no room
  EXPECT_TRUE(has(message_of([&] { Tokenizer::open(folder.path()); }), "is more than"));
}

}  // namespace
}  // namespace lquant::text
