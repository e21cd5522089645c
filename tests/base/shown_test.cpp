#include "base/shown.h"

#include <gtest/gtest.h>

namespace lquant {
namespace {

TEST(Shown, ShortTextsStayAsTheyAre) {
  EXPECT_EQ(shown(""), "");
  EXPECT_EQ(shown("model.layers.0"), "model.layers.0");
  EXPECT_EQ(shown("\"quoted\" \\ back"), "\"quoted\" \\ back");
  EXPECT_EQ(shown("日本 é 😀"), "日本 é 😀");
}

TEST(Shown, NothingReachesTheTerminal) {
  EXPECT_EQ(shown("two\nlines\t\r"), "two\\nlines\\t\\r");
  EXPECT_EQ(shown(std::string_view("\0\x1b[31m\x7f", 7)), "\\u0000\\u001b[31m\\u007f");
  EXPECT_EQ(shown("a\xff" "b"), "a\uFFFD" "b");
}

TEST(Shown, LongTextsLoseTheirMiddle) {
  EXPECT_EQ(shown("begin" + std::string(1000, 'x') + "end", 21), "beginxxx … xxxxxend");
  for (const std::size_t most : {10u, 11u, 12u, 13u, 120u}) {
    std::string wide;
    for (int i = 0; i < 1000; ++i) wide += "日";
    for (const auto& text : {wide, std::string(5000, '\n'), std::string(5000, '\xff')}) {
      const auto out = shown(text, most);
      EXPECT_LE(out.size(), most);
      EXPECT_EQ(out.find("\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD", 0) == std::string::npos || text[0] == '\xff', true);
      EXPECT_NE(out.find("…"), std::string::npos) << out;
    }
  }
}

}  // namespace
}  // namespace lquant
