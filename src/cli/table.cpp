// How wide a character is, the C library knows (wcwidth), for characters of the present locale; so that the answer depends on nobody's
// settings, the locale is named.
#include "cli/table.h"

#include <locale.h>
#include <wchar.h>
#ifdef __APPLE__
#include <xlocale.h>
#endif

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace lquant::cli {

namespace {

/// The thread's locale is one of UTF-8 while this lives. Where the system has none, all but ASCII counts one column a byte.
class InUtf8 {
 public:
  InUtf8() : before_(utf8() ? uselocale(utf8()) : nullptr) {}
  ~InUtf8() {
    if (before_) uselocale(before_);
  }
  InUtf8(const InUtf8&) = delete;
  InUtf8& operator=(const InUtf8&) = delete;

 private:
  static locale_t utf8() {
    static const locale_t found = [] {
      for (const char* name : {"C.UTF-8", "en_US.UTF-8"})
        if (const auto locale = newlocale(LC_CTYPE_MASK, name, nullptr)) return locale;
      return locale_t{};
    }();
    return found;
  }
  locale_t before_;
};

struct Character {
  std::size_t bytes;
  int columns;
};

/// The one at `at`, inside an InUtf8.
Character character(const std::string& text, std::size_t at) {
  std::mbstate_t state{};
  wchar_t wide = 0;
  const auto bytes = std::mbrtowc(&wide, text.data() + at, text.size() - at, &state);
  if (bytes == 0 || bytes > text.size() - at) return {1, 1};  // NUL, or no UTF-8
  return {bytes, std::max(0, wcwidth(wide))};
}

}  // namespace

int columns_of(const std::string& text) {
  const InUtf8 locale;
  int columns = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto c = character(text, at);
    columns += c.columns;
    at += c.bytes;
  }
  return columns;
}

std::string pad_columns(const std::string& text, int columns, Align align) {
  const std::string space(static_cast<std::size_t>(std::max(0, columns - columns_of(text))), ' ');
  return align == Align::left ? text + space : space + text;
}

std::string fit_columns(const std::string& text, int columns) {
  const InUtf8 locale;
  int used = 0;
  std::size_t keep = 0;  // bytes that leave a column for the ellipsis
  for (std::size_t at = 0; at < text.size();) {
    const auto c = character(text, at);
    if (used + c.columns > columns) return text.substr(0, keep) + "…";
    used += c.columns;
    at += c.bytes;
    if (used < columns) keep = at;
  }
  return text;
}

void Table::add(std::vector<std::string> cells) {
  if (cells.size() > columns_.size()) throw std::invalid_argument("[cli] a table's row has more cells than the table has columns");
  rows_.push_back(std::move(cells));
}

std::vector<std::string> Table::lines() const {
  std::vector<int> widths(columns_.size(), 0);
  for (const auto& row : rows_)
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], columns_of(row[c]));
  std::vector<std::string> lines;
  for (const auto& row : rows_) {
    std::string line;
    for (std::size_t c = 0; c < row.size(); ++c) line += (c == 0 ? "" : "  ") + pad_columns(row[c], widths[c], columns_[c]);
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string Table::text() const {
  std::string all;
  for (const auto& line : lines()) all += line + "\n";
  return all;
}

}  // namespace lquant::cli
