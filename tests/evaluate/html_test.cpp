#include "evaluate/html.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace lquant::evaluate {
namespace {

TEST(Escape, MarkupBecomesText) {
  EXPECT_EQ(escape("<script>alert('1' & \"2\")</script>"), "&lt;script&gt;alert(&#39;1&#39; &amp; &quot;2&quot;)&lt;/script&gt;");
  EXPECT_EQ(escape("a\tb\nc"), "a\tb\nc");
  EXPECT_EQ(escape("río 河 🌊"), "río 河 🌊");
}

TEST(Escape, WhatIsNoCharacterIsReplaced) {
  const std::string mark = "\xEF\xBF\xBD";
  EXPECT_EQ(escape("\xFFq"), mark + "q");
  EXPECT_EQ(escape(std::string_view("a\0b", 3)), "a" + mark + "b");
  EXPECT_EQ(escape("\x1b[31m"), mark + "[31m");
  EXPECT_EQ(escape("\xC0\xBC"), mark + mark);             // an overlong <
  EXPECT_EQ(escape("\xED\xA0\x80"), mark + mark + mark);  // half a pair of UTF-16
  EXPECT_EQ(escape("\xE6\xB2<"), mark + mark + "&lt;");   // a cut sequence does not swallow what follows
  EXPECT_EQ(escape("\xC2\x85"), mark);                    // a control of Latin 1
  EXPECT_EQ(escape("\xF4\x90\x80\x80"), mark + mark + mark + mark);
}

TEST(Visible, SpacesAndLineEndsShow) {
  EXPECT_EQ(visible(" the"), "<bdi>·the</bdi>");
  EXPECT_EQ(visible("a  b "), "<bdi>a  b·</bdi>");
  EXPECT_EQ(visible("\n\t<"), "<bdi>↵→&lt;</bdi>");
  EXPECT_EQ(visible("  "), "<bdi>··</bdi>");
  EXPECT_EQ(visible(""), "<bdi></bdi>");
}

TEST(Visible, KeepsTheEndOfALongText) {
  EXPECT_EQ(visible("äöüß", 2), "<bdi>…üß</bdi>");
  EXPECT_EQ(visible("<<<<", 3), "<bdi>…&lt;&lt;&lt;</bdi>");
}

TEST(Beginning, CutsBetweenCharacters) {
  EXPECT_EQ(beginning("äöü", 2), "äö…");
  EXPECT_EQ(beginning("äöü", 3), "äöü");
  EXPECT_EQ(beginning("<b>", 9), "<b>");
}

TEST(Number, ThreeDigits) {
  EXPECT_EQ(number(0), "0");
  EXPECT_EQ(number(0.012345), "0.0123");
  EXPECT_EQ(number(-1.2345), "-1.23");
  EXPECT_EQ(number(123.45), "123");
  EXPECT_EQ(number(0.00001234), "1.23e-5");
  EXPECT_EQ(number(std::nan("")), "–");
  EXPECT_EQ(number(INFINITY), "–");
}

TEST(Number, TheErrorSaysWhereBothEnd) {
  EXPECT_EQ(with_error(18.2345, 0.1234), "18.23 ± 0.12");
  EXPECT_EQ(with_error(0.0123456, 0.000345), "0.01235 ± 0.00034");
  EXPECT_EQ(with_error(0.5, 0), "0.500");
  EXPECT_EQ(with_error(0.5, std::nan("")), "0.500");
  EXPECT_EQ(with_error(std::nan(""), 1), "–");
}

TEST(Data, HoldsTheExactNumber) {
  const double third = 1.0 / 3;
  const auto html = data(third, "0.333");
  EXPECT_EQ(std::stod(html.substr(html.find('"') + 1)), third);
  EXPECT_EQ(data(std::nan(""), "–"), "–");
  EXPECT_EQ(data(std::int64_t{12}, "12"), "<data value=\"12\">12</data>");
}

TEST(Filled, ValuesAreNotPlaces) {
  EXPECT_EQ(filled("<p>{{a}}|{{b}}|{{a}}</p>", {{"a", "{{b}}"}, {"b", "2"}}), "<p>{{b}}|2|{{b}}</p>");
  EXPECT_THROW(filled("{{c}}", {}), std::invalid_argument);
  EXPECT_THROW(filled("{{c", {{"c", "1"}}), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::evaluate
