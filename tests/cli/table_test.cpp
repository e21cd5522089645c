#include "cli/table.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace lquant::cli {
namespace {

// What each text takes on a terminal that knows UTF-8: "é" once as one character and once as an e and a mark that combines with it, Chinese
// characters of two columns each.
TEST(Columns, AreThoseOfATerminal) {
  EXPECT_EQ(columns_of(""), 0);
  EXPECT_EQ(columns_of("0.1234 ± 0.0012"), 15);
  EXPECT_EQ(columns_of("\u00e9"), 1);
  EXPECT_EQ(columns_of("e\u0301"), 1);
  EXPECT_EQ(columns_of("模型"), 4);
  EXPECT_EQ(columns_of("\xff\xfe"), 2);  // no UTF-8
}

TEST(Columns, PaddingCountsThem) {
  EXPECT_EQ(pad_columns("a", 3), "a  ");
  EXPECT_EQ(pad_columns("a", 3, Align::right), "  a");
  EXPECT_EQ(pad_columns("±", 3), "±  ");
  EXPECT_EQ(pad_columns("±", 3, Align::right), "  ±");
  EXPECT_EQ(pad_columns("模型", 5), "模型 ");
  EXPECT_EQ(pad_columns("abcd", 3), "abcd");
}

TEST(Columns, FittingCountsThem) {
  EXPECT_EQ(fit_columns("abc", 3), "abc");
  EXPECT_EQ(fit_columns("abcd", 3), "ab…");
  EXPECT_EQ(fit_columns("a±cd", 3), "a±…");
  EXPECT_EQ(fit_columns("±±±", 3), "±±±");
  EXPECT_EQ(fit_columns("模型模型", 8), "模型模型");
  EXPECT_EQ(fit_columns("模型模型", 7), "模型模…");  // 3 · 2 + 1
  EXPECT_EQ(fit_columns("模型模型", 6), "模型…");    // a wide one more would leave no room for the ellipsis
  EXPECT_EQ(fit_columns("e\u0301e\u0301", 2), "e\u0301e\u0301");
  for (int columns = 1; columns < 12; ++columns) EXPECT_LE(columns_of(fit_columns("a±模型e\u0301z and more", columns)), columns);
}

TEST(Table, ColumnsBeginTogetherWhateverTheirBytes) {
  Table table({Align::left, Align::right, Align::left});
  table.add({"step", "KL", "time"});
  table.add({"awq", "0.12 ± 0.01", "1 s"});
  table.add({"模", "0.1", "2 s"});
  EXPECT_EQ(table.text(),
            "step           KL  time\n"
            "awq   0.12 ± 0.01  1 s\n"
            "模            0.1  2 s\n");
}

TEST(Table, RowsMayBeShort) {
  Table table({Align::left, Align::left});
  table.add({"a", "b"});
  table.add({"longer"});
  EXPECT_EQ(table.text(), "a       b\nlonger\n");
  EXPECT_THROW(table.add({"a", "b", "c"}), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::cli
