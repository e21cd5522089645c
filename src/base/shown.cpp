// What stands in a file may be a line of 100,000 letters, or an escape sequence that repaints the reader's terminal.
#include "base/shown.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace lquant {
namespace {

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

std::string cut(std::string_view text, std::size_t most) {
  constexpr std::string_view kGap = " … ";
  if (text.size() <= most || most <= kGap.size()) return std::string(text.substr(0, most));
  std::size_t head = (most - kGap.size()) / 2;
  std::size_t tail = text.size() - (most - kGap.size() - head);
  while (head > 0 && continues(text[head])) --head;
  while (tail < text.size() && continues(text[tail])) ++tail;
  return fmt::format("{}{}{}", text.substr(0, head), kGap, text.substr(tail));
}

}  // namespace

std::string shown(std::string_view text, std::size_t most) {
  // JSON's own writer escapes control characters and replaces what is not UTF-8; its quotes and backslashes are taken back.
  const auto quoted = nlohmann::json(cut(text, most)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::string out;
  for (std::size_t i = 1; i + 1 < quoted.size(); ++i) {
    const bool plain = quoted[i] == '\\' && (quoted[i + 1] == '"' || quoted[i + 1] == '\\');
    if (plain) ++i;
    if (quoted[i] == '\x7f')
      out += "\\u007f";
    else
      out += quoted[i];
  }
  return cut(out, most);
}

}  // namespace lquant
