#include "base/nearest.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace lquant {
namespace {

const std::vector<std::string> kNames{"arc_easy", "boolq", "hellaswag", "piqa"};

TEST(Nearest, CountsInsertionsDeletionsAndReplacements) {
  EXPECT_EQ(nearest("arc_esy", kNames), "arc_easy");      // one is missing
  EXPECT_EQ(nearest("hellaswagg", kNames), "hellaswag");  // one too many
  EXPECT_EQ(nearest("boolp", kNames), "boolq");           // one is another
  EXPECT_EQ(nearest("piqa", kNames), "piqa");
}

TEST(Nearest, TheFirstOfEqualsIsTaken) {
  EXPECT_EQ(nearest("ac", {"ab", "ad"}), "ab");
  EXPECT_EQ(nearest("", {"long", "ab", "cd"}), "ab");
}

TEST(Nearest, NeedsAName) { EXPECT_THROW(nearest("a", {}), std::invalid_argument); }

}  // namespace
}  // namespace lquant
