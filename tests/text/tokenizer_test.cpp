#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "text/stream.h"
#include "text/temp_folder.h"

namespace lquant::text {
namespace {

using Ids = std::vector<int>;

const Tokenizer& tiny() {
  static const auto tokenizer = Tokenizer::open(tiny_model());
  return tokenizer;
}

// Byte-level BPE has a token for each byte, so every text comes back as it was.
const std::vector<std::string> kTexts = {
    "",
    "Once upon a time, there was a little girl.",
    "  two  spaces\tand a tab\n\n\n",
    "naïve café — déjà vu",
    "e\u0301 combined, \u1100\u1161\u11a8 jamo",
    "日本語と中文，한국어",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag",
    std::string("zero\0byte", 9),
    "def f(x):\n    return {'a': [1, 22, 333]}\n",
    "<|im_start|>user\nhi<|im_end|>",
    std::string(3000, ' '),
    "mixed \u200b zero width \ufeff mark \ufffd replacement",
};

TEST(Tokenizer, EveryTextComesBack) {
  for (const auto& text : kTexts) EXPECT_EQ(tiny().decode(tiny().encode(text)), text);
}

TEST(Tokenizer, BatchEqualsOneByOne) {
  const auto rows = tiny().encode_batch(kTexts);
  ASSERT_EQ(rows.size(), kTexts.size());
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], tiny().encode(kTexts[i])) << kTexts[i];
  EXPECT_TRUE(tiny().encode_batch({}).empty());
}

TEST(Tokenizer, SpecialTokensAreOneIdAndCanBeSkipped) {
  const auto ids = tiny().encode("<|im_start|>a<|im_end|>");
  ASSERT_EQ(ids.size(), 3u);
  EXPECT_EQ(ids.front(), tiny().token_id("<|im_start|>"));
  EXPECT_EQ(ids.back(), tiny().token_id("<|im_end|>"));
  EXPECT_EQ(tiny().decode(ids, true), "a");
}

TEST(Tokenizer, VocabularyLooksUpBothWays) {
  EXPECT_EQ(tiny().vocab_size(), 8192u);
  EXPECT_EQ(tiny().token_id("<|endoftext|>"), 0);
  EXPECT_EQ(tiny().token_id("not a token at all"), std::nullopt);
  for (int id = 0; id < 8192; id += 97) EXPECT_EQ(tiny().token_id(tiny().token(id)), id);
  EXPECT_TRUE(has(message_of([] { tiny().token(8192); }), "no token 8192"));
  EXPECT_TRUE(has(message_of([] { tiny().token(-1); }), "no token -1"));
}

TEST(Tokenizer, RolesOfTheTinyModel) {
  EXPECT_EQ(tiny().bos_id(), 0);
  EXPECT_EQ(tiny().eos_ids(), (Ids{0}));
  EXPECT_EQ(tiny().config().at("model_max_length"), 512);
}

TEST(Tokenizer, InvalidUtf8IsReadAsReplacement) {
  EXPECT_EQ(tiny().decode(tiny().encode("a\xff\xfe z\xe6\x97")), "a\uFFFD\uFFFD z\uFFFD");
  EXPECT_EQ(tiny().token_id("\xff"), std::nullopt);
}

TEST(Tokenizer, HalfACharacterDecodesToReplacement) {
  auto ids = tiny().encode("日");
  ASSERT_GT(ids.size(), 1u) << "the character should take several byte tokens";
  ids.pop_back();
  EXPECT_TRUE(has(tiny().decode(ids), "\uFFFD"));
}

TEST(Tokenizer, IdsOutsideTheVocabulary) {
  auto ids = tiny().encode("a b");
  ids.push_back(8192);
  ids.push_back(std::numeric_limits<std::int32_t>::max());
  EXPECT_EQ(tiny().decode(ids), "a b");
  EXPECT_TRUE(has(message_of([] { tiny().decode(std::vector<std::int32_t>{-1}); }), "-1 is not a token id"));
}

TEST(Tokenizer, ReadFromManyThreads) {
  std::vector<std::vector<std::vector<std::int32_t>>> rows(4);
  {
    std::vector<std::jthread> threads;
    for (auto& row : rows) {
      threads.emplace_back([&row, copy = tiny()] {
        for (int i = 0; i < 20; ++i) row = copy.encode_batch(kTexts);
      });
    }
  }
  for (const auto& row : rows) EXPECT_EQ(row, tiny().encode_batch(kTexts));
}

TEST(StreamDecoder, PiecesAreWholeCharactersAndJoinToTheText) {
  for (const auto& text : kTexts) {
    const auto ids = tiny().encode(text);
    StreamDecoder stream(tiny());
    std::string joined;
    for (const auto id : ids) {
      const auto piece = stream.add(id);
      // nlohmann's writer is the judge of whole UTF-8: it throws on anything else.
      EXPECT_NO_THROW(nlohmann::json(piece).dump()) << text;
      joined += piece;
    }
    EXPECT_EQ(joined + stream.finish(), text);
  }
}

TEST(StreamDecoder, PrintsEachWordAtOnce) {
  StreamDecoder stream(tiny());
  for (const auto id : tiny().encode("Once upon a time")) EXPECT_FALSE(stream.add(id).empty());
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, AnUnfinishedCharacterWaitsAndIsReplacedAtTheEnd) {
  auto ids = tiny().encode("日");
  ids.pop_back();
  StreamDecoder stream(tiny());
  for (const auto id : ids) EXPECT_EQ(stream.add(id), "");
  EXPECT_TRUE(has(stream.finish(), "\uFFFD"));
  EXPECT_EQ(stream.finish(), "") << "after finish() the decoder is as new";
}

}  // namespace
}  // namespace lquant::text
