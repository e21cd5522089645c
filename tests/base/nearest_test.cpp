#include "base/nearest.h"

#include <gtest/gtest.h>

namespace lquant {
namespace {

const std::vector<std::string> kNames{"arc_easy", "boolq", "hellaswag", "piqa"};

TEST(Nearest, CountsInsertionsDeletionsAndReplacements) {
  EXPECT_EQ(nearest("arc_esy", kNames), "arc_easy");      // one is missing
  EXPECT_EQ(nearest("hellaswagg", kNames), "hellaswag");  // one too many
  EXPECT_EQ(nearest("boolp", kNames), "boolq");           // one is another
  EXPECT_EQ(nearest("piqa", kNames), "piqa");
}

TEST(Nearest, ExchangedNeighboursAreOneSlip) {
  EXPECT_EQ(nearest("dqw", {"awq", "dwq"}), "dwq");
  EXPECT_EQ(nearest("--modle", {"--mode", "--model"}), "--mode");  // one missing: as near as the exchange, and first
  EXPECT_EQ(nearest("--modle", {"--data", "--model"}), "--model");
  EXPECT_EQ(nearest("pqia", kNames), "piqa");
}

TEST(Nearest, CapitalsAreNoSlips) { EXPECT_EQ(nearest("DWQ", {"awq", "dwq"}), "dwq"); }

TEST(Nearest, OffersNothingThatNobodyMeant) {
  EXPECT_EQ(nearest("mmlu", kNames), std::nullopt);
  EXPECT_EQ(nearest("ab", {"cd"}), std::nullopt);
  EXPECT_EQ(nearest("", {"long", "ab"}), std::nullopt);
  EXPECT_EQ(nearest("a", {}), std::nullopt);
  // One slip is allowed to short names, and one in three characters to long ones.
  EXPECT_EQ(nearest("ab", {"ac"}), "ac");
  EXPECT_EQ(nearest("mixed-4-6", {"mixed_4_6"}), "mixed_4_6");
  EXPECT_EQ(nearest("abcdefghi", {"abcdexyzi"}), "abcdexyzi");
  EXPECT_EQ(nearest("abcdefghi", {"abcdwxyzi"}), std::nullopt);
}

TEST(Nearest, TheFirstOfEqualsIsTaken) { EXPECT_EQ(nearest("ac", {"ab", "ad"}), "ab"); }

TEST(Nearest, DidYouMean) {
  EXPECT_EQ(did_you_mean("hellaswg", kNames), "; did you mean hellaswag?");
  EXPECT_EQ(did_you_mean("mmlu", kNames), "");
}

}  // namespace
}  // namespace lquant
