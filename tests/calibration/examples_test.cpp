#include "calibration/examples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "base/error.h"
#include "base/temp.h"

namespace lquant::calibration {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kTemplate =
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}";

class ExamplesTest : public ::testing::Test {
 protected:
  ExamplesTest() {
    fs::copy(fs::path(LQUANT_SOURCE_DIR) / "models/tiny", model.path(), fs::copy_options::recursive);
    std::ofstream(model / "chat_template.jinja") << kTemplate;
    tokenizer.emplace(text::Tokenizer::open(model.path()));
  }
  fs::path write(const std::string& name, const std::string& content) {
    std::ofstream(temp / name, std::ios::binary) << content;
    return temp / name;
  }
  std::vector<Example> read(const std::string& name, const std::string& content) { return read_examples(write(name, content), *tokenizer, options); }
  std::string reading_fails(const std::string& name, const std::string& content) {
    try {
      read(name, content);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }
  std::string text_of(const Example& example) const { return tokenizer->decode(example.tokens); }

  lquant::testing::TempFolder temp, model;
  std::optional<text::Tokenizer> tokenizer;
  SourceOptions options;
};

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST_F(ExamplesTest, TextEndsWithTheEndOfText) {
  const auto rows = read("a.jsonl", "{\"text\": \"Once upon a time\"}\n\n  \n{\"text\": \"\"}\n");
  ASSERT_EQ(rows.size(), 2u);
  auto expected = tokenizer->encode("Once upon a time");
  expected.push_back(tokenizer->eos_ids().front());
  EXPECT_EQ(rows[0].tokens, expected);
  EXPECT_EQ(rows[0].prompt, 0);
  EXPECT_EQ(rows[1].tokens, std::vector<std::int32_t>{tokenizer->eos_ids().front()});
  // An end that is there already is not doubled.
  EXPECT_EQ(read("b.jsonl", "{\"text\": \"Once upon a time<|endoftext|>\"}")[0].tokens, expected);
}

TEST_F(ExamplesTest, ChatsGoThroughTheTemplate) {
  const auto rows = read("a.jsonl", R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})"
                                    "\n"
                                    R"({"prompt": "Hi", "completion": "Hello"})");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(text_of(rows[0]), "<user>Hi</user><assistant>Hello</assistant>");
  EXPECT_EQ(rows[1].tokens, rows[0].tokens);
  EXPECT_EQ(rows[0].prompt, 0);
}

TEST_F(ExamplesTest, ToolsKeepTheOrderOfTheirKeys) {
  const auto rows = read("a.jsonl", R"({"messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function", "name": "z", "a": 1}]})");
  EXPECT_EQ(text_of(rows[0]), "[{\"type\": \"function\", \"name\": \"z\", \"a\": 1}]\n<user>Hi</user>");
}

TEST_F(ExamplesTest, MaskedPromptsEndWhereTheAnswerBegins) {
  options.mask_prompt = true;
  const auto rows = read("a.jsonl", R"({"prompt": "Hi", "completion": "Hello"})"
                                    "\n"
                                    R"({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}]})");
  const std::vector<std::int32_t> prompt(rows[0].tokens.begin(), rows[0].tokens.begin() + rows[0].prompt);
  EXPECT_EQ(tokenizer->decode(prompt), "<user>Hi</user><assistant>");
  // A last message that is not an answer is what is learned, without a header for an answer before it.
  const std::vector<std::int32_t> rest(rows[1].tokens.begin(), rows[1].tokens.begin() + rows[1].prompt);
  EXPECT_EQ(tokenizer->decode(rest), "<system>x</system>");
  EXPECT_HAS(reading_fails("b.jsonl", "{\"text\": \"a\"}"), "row 1 is plain text, which has no prompt to mask; drop --mask-prompt");
  EXPECT_HAS(reading_fails("b.txt", "abc"), "plain text has no prompt to mask");
}

TEST_F(ExamplesTest, LongRowsAreCut) {
  options.max_tokens = 3;
  const auto rows = read("a.jsonl", "{\"text\": \"Once upon a time there was a little girl\"}");
  EXPECT_EQ(rows[0].tokens.size(), 3u);
}

TEST_F(ExamplesTest, PlainTextIsCutIntoPiecesThatJoinToTheWhole) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "Once upon a time there was a cat. ";
  const auto whole = tokenizer->encode(text);
  options.max_tokens = 32;
  const auto pieces = read("a.txt", text);
  std::vector<std::int32_t> joined;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (i + 1 < pieces.size()) EXPECT_EQ(pieces[i].tokens.size(), 32u);
    joined.insert(joined.end(), pieces[i].tokens.begin(), pieces[i].tokens.end());
  }
  EXPECT_EQ(joined, whole);
  EXPECT_EQ(count_examples(temp / "a.txt", *tokenizer, options), pieces.size());
}

TEST_F(ExamplesTest, OnlyWantedRowsAreRead) {
  const auto file = write("a.jsonl", "{\"text\": \"one\"}\nnot JSON\n{\"text\": \"three\"}\n");
  EXPECT_EQ(count_examples(file, *tokenizer, options), 3u);
  const auto rows = read_examples(file, *tokenizer, options, {0, 2});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(text_of(rows[1]), "three<|endoftext|>");
}

TEST_F(ExamplesTest, RowsAreReadUntilTheyHoldEnough) {
  const auto file = write("a.jsonl", R"({"tokens": [1, 2, 3]})"
                                     "\n"
                                     R"({"tokens": [4, 5, 6]})"
                                     "\n"
                                     R"({"tokens": [7, 8, 9]})");
  const auto all = read_until(file, *tokenizer, options, 5, 100);
  ASSERT_EQ(all.size(), 3u);
  for (const std::size_t tokens : {1u, 3u, 4u, 6u, 7u}) {
    const auto some = read_until(file, *tokenizer, options, 5, tokens);
    ASSERT_EQ(some.size(), (tokens + 2) / 3) << tokens;
    for (std::size_t i = 0; i < some.size(); ++i) EXPECT_EQ(some[i].tokens, all[i].tokens);
  }
  // The rows behind are not tokenized, but a damaged file is one all the same.
  for (const char* wrong : {"not JSON", "[1]", R"({"text": null})", R"({"messages": []})", R"({"tokens": [-1]})", R"({"words": "a"})"}) {
    std::vector<std::string> lines(3, wrong);
    lines[all[0].origin.row - 1] = R"({"tokens": [1, 2, 3]})";
    const auto bad = write("b.jsonl", lines[0] + "\n" + lines[1] + "\n" + lines[2]);
    EXPECT_THROW(read_until(bad, *tokenizer, options, 5, 3), Error) << wrong;
  }
}

TEST_F(ExamplesTest, FaultsNameTheFileAndTheRow) {
  const std::string good = "{\"text\": \"a\"}\n\n";
  EXPECT_HAS(reading_fails("a.jsonl", good + "{oops"), "a.jsonl: row 3 is not JSON (column 2)");
  const std::string deep(50'000, '[');
  EXPECT_HAS(reading_fails("a.jsonl", good + "{\"messages\": " + deep + std::string(50'000, ']') + "}"),
             "row 3 is not JSON (nested more than 200 deep)");
  EXPECT_HAS(reading_fails("a.jsonl", good + "{\"messages\": [{\"role\": 1}], \"tools\": " + deep), "row 3 is not JSON");
  EXPECT_HAS(reading_fails("a.jsonl", good + "[1]"), "row 3 is not a JSON object");
  EXPECT_HAS(reading_fails("a.jsonl", good + "{\"words\": 1}"), "row 3 has none of the keys \"text\"");
  EXPECT_HAS(reading_fails("a.jsonl", good + "{\"text\": 7}"), "row 3 has a text that is not a string");
  EXPECT_HAS(reading_fails("a.jsonl", good + "{\"prompt\": null, \"completion\": \"a\"}"), "row 3 has a text that is not a string");
  EXPECT_HAS(reading_fails("a.jsonl", good + "{\"messages\": []}"), "row 3 has \"messages\" that is not a list");
  EXPECT_HAS(reading_fails("a.jsonl", good + "{\"messages\": \"hi\"}"), "row 3 has \"messages\" that is not a list");
  EXPECT_HAS(reading_fails("a.jsonl", "\n \n"), "a.jsonl: holds no rows");
  EXPECT_HAS(reading_fails("a.txt", ""), "a.txt: is empty");
  EXPECT_HAS(reading_fails("a.csv", "x"), "a.csv: unknown kind of data");
}

TEST_F(ExamplesTest, WhatTheTemplateRefusesNamesTheRow) {
  std::ofstream(model / "chat_template.jinja") << "{% for m in messages %}{{ '<' + m['content'] }}{% endfor %}";
  tokenizer.emplace(text::Tokenizer::open(model.path()));
  const std::string good = R"({"messages": [{"role": "user", "content": "Hi"}]})";
  const auto text = reading_fails("a.jsonl", good + "\n\n" + R"({"messages": [{"role": "user", "content": null}]})");
  EXPECT_HAS(text, "[text] " + (temp / "a.jsonl").string() + ": row 3: ");
  EXPECT_HAS(reading_fails("a.jsonl", good + "\n" + R"({"messages": ["Hi"]})"), "a.jsonl: row 2: a chat message should be an object");
}

TEST_F(ExamplesTest, FurtherRowsAreThoseThatALargerDrawAdds) {
  std::string lines;
  for (int i = 0; i < 12; ++i) lines += json{{"tokens", {i}}}.dump() + "\n";
  const std::vector<std::filesystem::path> files{write("a.jsonl", lines), write("b.jsonl", lines),
                                                 write("c.txt", "the old river of stone and light")};
  options.max_tokens = 2;
  const auto tokens = [](const std::vector<Example>& examples) {
    std::multiset<std::vector<std::int32_t>> all;
    for (const auto& example : examples) all.insert(example.tokens);
    return all;
  };
  const auto few = draw_examples(files, *tokenizer, options, 5, 7), both = draw_examples(files, *tokenizer, options, 5, 7, 6);
  ASSERT_EQ(both.examples.size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(both.examples[i].tokens, few.examples[i].tokens);
  EXPECT_EQ(both.manifest, few.manifest);
  EXPECT_TRUE(few.further.empty());
  auto together = both.examples;
  together.insert(together.end(), both.further.begin(), both.further.end());
  EXPECT_EQ(tokens(together), tokens(draw_examples(files, *tokenizer, options, 11, 7).examples));
  EXPECT_TRUE(draw_examples(files, *tokenizer, options, -1, 7, 6).further.empty());
}

TEST_F(ExamplesTest, ATemplateThatWritesNothingIsNamed) {
  std::ofstream(model / "chat_template.jinja") << "{% for m in messages %}{% endfor %}";
  tokenizer.emplace(text::Tokenizer::open(model.path()));
  const auto file = write("a.jsonl", R"({"messages": [{"role": "user", "content": "Hi"}]})");
  try {
    draw_examples({file}, *tokenizer, options, 1, 0);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    const std::string text = e.what();
    EXPECT_HAS(text, "a.jsonl: every row drawn is empty (its chats as " + (model / "chat_template.jinja").string() + " writes them)");
  }
}

TEST_F(ExamplesTest, TokensOutsideTheModelsTableNameTheRow) {
  options.vocab = tokenizer->encode("z").front() + 1;
  const auto word = tokenizer->encode(" river");
  ASSERT_GE(word.front(), options.vocab);
  const auto found =
      fmt::format("row 3: token {} (\"{}\") is outside the model's table of {} tokens", word.front(), tokenizer->token(word.front()), options.vocab);
  const std::string row = json{{"tokens", {options.vocab - 1}}}.dump() + "\n";
  EXPECT_HAS(reading_fails("a.jsonl", row + row + R"({"text": "z river"})"), "a.jsonl: " + found);
  EXPECT_HAS(reading_fails("a.jsonl", row + row + json{{"tokens", {word.front()}}}.dump()), "a.jsonl: " + found);
  // A text is encoded as a whole; the line is found.
  EXPECT_HAS(reading_fails("a.txt", "z\nz\nz river\nz"), "a.txt: " + found);
  options.vocab = static_cast<int>(tokenizer->vocab_size());
  const auto read_rows = read("a.jsonl", row + "\n" + R"({"text": "z river"})");
  EXPECT_EQ(read_rows.back().origin.place(), (temp / "a.jsonl").string() + ": row 3");
}

std::string numbered(int rows, const std::string& word = "number") {
  std::string text;
  for (int i = 0; i < rows; ++i) text += json{{"text", word + " " + std::to_string(i)}}.dump() + "\n";
  return text;
}

class SplitTest : public ExamplesTest {
 protected:
  std::vector<std::string> texts(const std::vector<Example>& examples) const {
    std::vector<std::string> out;
    for (const auto& e : examples) out.push_back(text_of(e));
    return out;
  }
  Split split(const fs::path& path, int train, int valid, std::uint64_t seed = 1) {
    return load_split(path, *tokenizer, options, train, valid, seed);
  }
};

TEST_F(SplitTest, PartsAreDisjointAndTheSameForTheSameSeed) {
  const auto file = write("a.jsonl", numbered(50));
  const auto a = split(file, 30, 10), b = split(file, 30, 10), other = split(file, 30, 10, 2);
  ASSERT_EQ(a.train.size(), 30u);
  ASSERT_EQ(a.valid.size(), 10u);
  std::set<std::string> seen;
  for (const auto& t : texts(a.train)) EXPECT_TRUE(seen.insert(t).second) << t;
  for (const auto& t : texts(a.valid)) EXPECT_TRUE(seen.insert(t).second) << t;
  EXPECT_EQ(texts(a.train), texts(b.train));
  EXPECT_EQ(texts(a.valid), texts(b.valid));
  EXPECT_EQ(a.manifest, b.manifest);
  EXPECT_NE(texts(a.train), texts(other.train));
}

TEST_F(SplitTest, FewRowsGiveATenthToValidation) {
  auto s = split(write("a.jsonl", numbered(30)), 100, 20);
  EXPECT_EQ(s.train.size(), 27u);
  EXPECT_EQ(s.valid.size(), 3u);
  s = split(write("b.jsonl", numbered(2)), 100, 20);
  EXPECT_EQ(s.train.size(), 1u);
  EXPECT_EQ(s.valid.size(), 1u);
  EXPECT_NE(texts(s.train), texts(s.valid));
  s = split(write("c.jsonl", numbered(1)), 100, 20);  // one row must do for both
  EXPECT_EQ(texts(s.train), texts(s.valid));
  EXPECT_EQ(s.manifest.at("rows"), (json{{"train", 1}, {"valid", 1}}));
}

TEST_F(SplitTest, AFolderMayHaveItsOwnValidation) {
  write("train.jsonl", numbered(10));
  EXPECT_EQ(split(temp.path(), 5, 3).valid.size(), 3u);
  write("valid.jsonl", numbered(4, "valid"));
  const auto s = split(temp.path(), 100, 3);
  EXPECT_EQ(s.train.size(), 10u);
  ASSERT_EQ(s.valid.size(), 3u);
  for (const auto& t : texts(s.valid)) EXPECT_EQ(t.find("valid"), 0u) << t;
  EXPECT_EQ(s.manifest.at("valid").at("file"), "valid.jsonl");
  EXPECT_EQ(s.manifest.at("train").at("sha256").get<std::string>().size(), 64u);
}

TEST_F(SplitTest, MissingDataIsNamed) {
  EXPECT_THROW(split(temp / "nothing.jsonl", 1, 1), Error);
  EXPECT_THROW(split(temp.path(), 1, 1), Error);  // a folder without train.jsonl
}

}  // namespace
}  // namespace lquant::calibration
