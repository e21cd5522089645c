// tokenizer.json comes from strangers. Whatever stands in it, opening and using it ends in a tokenizer or in an Error.

#include <gtest/gtest.h>

#include <chrono>
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

TEST(Hostile, FaultsAreToldWithoutTheNamesOfTheCratesTypes) {
  auto content = word_tokenizer();
  content["pre_tokenizer"] = {{"type", 7}};
  content["model"]["vocab"] = "none";
  for (const auto& [bytes, part] : {std::pair{content.dump(), "line 1, column "}, {std::string("{"), "line 1, column 1: no valid JSON"}}) {
    TempFolder folder;
    folder.write("tokenizer.json", std::string_view(bytes));
    const auto text = message_of([&] { Tokenizer::open(folder.path()); });
    EXPECT_TRUE(has(text, "[text] ", "tokenizer.json", part));
    EXPECT_EQ(text.find("enum"), std::string::npos) << text;
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

/// Base64 of a map for a Precompiled step: the length that it claims for its tables, the tables, the texts that it writes.
std::string charsmap(std::uint32_t claimed, const std::string& tables, const std::string& texts) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes += static_cast<char>(claimed >> (8 * i) & 0xff);
  bytes += tables + texts;
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (std::size_t j = 0; j < 4; ++j) out += j > bytes.size() - i ? '=' : kDigits[group >> (18 - 6 * j) & 63];
  }
  return out;
}

json with_normalizer(const json& normalizer) {
  auto content = word_tokenizer();
  content["normalizer"] = normalizer;
  return content;
}

json replace(const json& pattern, const std::string& with) { return {{"type", "Replace"}, {"pattern", pattern}, {"content", with}}; }

json chain(const char* list, std::vector<json> steps) { return {{"type", "Sequence"}, {list, std::move(steps)}}; }

std::string opened(const json& content) {
  TempFolder folder;
  folder.write("tokenizer.json", content);
  return message_of([&] { Tokenizer::open(folder.path()); });
}

/// What is said of a text of this many letters a. It must be said soon.
std::string encoded(const json& content, std::size_t letters = 1000) {
  TempFolder folder;
  folder.write("tokenizer.json", content);
  const auto tokenizer = Tokenizer::open(folder.path());
  const auto begin = std::chrono::steady_clock::now();
  const auto message = message_of([&] { (void)tokenizer.encode(std::string(letters, 'a')); });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  return message;
}

TEST(Hostile, PrecompiledMapsThatClaimMoreThanTheyHold) {
  const auto step = [](const std::string& map) { return with_normalizer({{"type", "Precompiled"}, {"precompiled_charsmap", map}}); };
  const std::string table(8, '\0');
  for (const auto claimed : {9u, 0x7fffffffu, 0xffffffffu}) {
    EXPECT_TRUE(has(opened(step(charsmap(claimed, table, ""))), "[text] ", "tokenizer.json", "claims")) << claimed;
    // Wherever it stands.
    const auto inner = step(charsmap(claimed, table, ""))["normalizer"];
    EXPECT_TRUE(has(opened(with_normalizer(chain("normalizers", {chain("normalizers", {inner})}))), "claims")) << claimed;
  }
  EXPECT_TRUE(has(opened(step("AAAA")), "[text] ", "tokenizer.json", "cut short"));
  EXPECT_TRUE(has(opened(step("????")), "[text] ", "tokenizer.json", "base64"));
  EXPECT_TRUE(has(opened(step(charsmap(8, table, std::string(5000, 'x')))), "[text] ", "writes 5000 bytes"));
}

TEST(Hostile, PanicsOfTheCrateAreErrors) {
  // The crate indexes its table by the letters of the text, and panics where the table ends.
  const auto map = charsmap(8, std::string(8, '\0'), "");
  EXPECT_TRUE(has(encoded(with_normalizer({{"type", "Precompiled"}, {"precompiled_charsmap", map}})), "[text] ", "internal fault"));
}

TEST(Hostile, StepsThatGrowATextWithoutBound) {
  const json letter = {{"String", "a"}}, any = {{"Regex", "."}};
  EXPECT_TRUE(has(encoded(with_normalizer(chain("normalizers", std::vector<json>(40, replace(letter, "aa")))), 2), "[text] ", "far longer"));
  EXPECT_TRUE(has(encoded(with_normalizer(chain("normalizers", std::vector<json>(40, chain("normalizers", {replace(any, "aa")}))))), "far longer"));
  EXPECT_TRUE(has(encoded(with_normalizer(replace(letter, std::string(1000, 'a')))), "far longer"));
  EXPECT_TRUE(has(encoded(with_normalizer(replace({{"String", ""}}, std::string(1000, 'a')))), "far longer"));
  const json bytes = {{"type", "ByteLevel"}};
  EXPECT_TRUE(has(encoded(with_normalizer(chain("normalizers", {replace(letter, "\u00e9"), chain("normalizers", std::vector<json>(40, bytes))}))), "far longer"));
  EXPECT_TRUE(has(encoded(with_normalizer(chain("normalizers", std::vector<json>(900, json{{"type", "Prepend"}, {"prepend", std::string(1000, 'a')}})))), "far longer"));
  EXPECT_TRUE(has(opened(with_normalizer(replace(letter, std::string(100'000, 'a')))), "writes 100000 bytes"));
  EXPECT_TRUE(has(opened(with_normalizer(chain("normalizers", std::vector<json>(5000, json{{"type", "NFC"}})))), "more than 1000 steps"));

  auto content = word_tokenizer();
  content["decoder"] = chain("decoders", std::vector<json>(40, replace(any, "aa")));
  TempFolder folder;
  folder.write("tokenizer.json", content);
  const auto tokenizer = Tokenizer::open(folder.path());
  EXPECT_TRUE(has(message_of([&] { (void)tokenizer.decode(std::vector<std::int32_t>{0, 1}); }), "[text] ", "far longer"));

  content = word_tokenizer();
  content["pre_tokenizer"] = chain("pretokenizers", std::vector<json>(40, json{{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}}));
  EXPECT_TRUE(has(opened(content), "ByteLevel"));

  content = word_tokenizer();
  content["post_processor"] = {{"type", "TemplateProcessing"},
                               {"single", std::vector<json>(100'000, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}})},
                               {"pair", json::array()},
                               {"special_tokens", json::object()}};
  EXPECT_TRUE(has(opened(content), "repeats the text"));
}

// What message_of says when nothing is thrown.
const std::string kNoError = message_of([] {});

TEST(Hostile, TextsThatGrowAsTheyMay) {
  // Blanks become three bytes, each letter two letters, and a compatibility form eighteen: all of it is in use or near it.
  EXPECT_EQ(encoded(with_normalizer(replace({{"String", "a"}}, "\u2581")), 3'000'000), kNoError);
  EXPECT_EQ(encoded(with_normalizer(chain("normalizers", {replace({{"Regex", "a"}}, "\ufdfa"), {{"type", "NFKD"}}})), 1000), kNoError);
  EXPECT_EQ(encoded(with_normalizer(chain("normalizers", std::vector<json>(500, replace({{"String", "b"}}, "bb"))))), kNoError);
}

TEST(Hostile, RegularExpressions) {
  for (const auto* pattern : {"(", "[a", "(?P<n>", "a{99999999}", "\\p{NoSuch}", "(a+)+$", "(?<=a*)b", "\\"}) {
    auto content = word_tokenizer();
    content["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    survives(content.dump());
  }
}

TEST(Hostile, RegularExpressionsThatTryWithoutEnd) {
  for (const auto* pattern : {"(a+)+$b", "(a|a)*[^a]", "(a|aa)+[^a]", "a*a*a*a*a*a*[^a]"}) {
    EXPECT_TRUE(has(encoded(with_normalizer(replace({{"Regex", pattern}}, ""))), "[text] ", "cannot encode")) << pattern;
    auto content = word_tokenizer();
    content["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    EXPECT_TRUE(has(encoded(content), "[text] ", "cannot encode")) << pattern;
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
