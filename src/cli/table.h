#pragma once

#include <string>
#include <vector>

namespace lquant::cli {

enum class Align { left, right };

/// Lines of cells in columns, each as wide as its widest cell on a terminal, two spaces between. Spaces at the end of a line are left out.
class Table {
 public:
  /// One a column. A row may have fewer cells.
  explicit Table(std::vector<Align> columns) : columns_(std::move(columns)) {}
  void add(std::vector<std::string> cells);
  /// The rows in the order added, each without its line's end.
  std::vector<std::string> lines() const;
  /// lines(), each with its line's end.
  std::string text() const;

 private:
  std::vector<Align> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// Columns that a UTF-8 text takes on a terminal: none for marks that combine, two for wide characters, one for what is no UTF-8.
int columns_of(const std::string& text);

/// The text with spaces on the other side, so that it takes so many columns on a terminal; as it is when it takes more.
std::string pad_columns(const std::string& text, int columns, Align align = Align::left);

/// The first characters of a UTF-8 text that fit into so many columns of a terminal, an ellipsis in the last place when something is cut.
std::string fit_columns(const std::string& text, int columns);

}  // namespace lquant::cli
