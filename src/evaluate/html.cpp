#include "evaluate/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "base/figures.h"

namespace lquant::evaluate {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Length of the well-formed UTF-8 sequence at `at` (Unicode, table 3-7), 0 when there is none.
std::size_t sequence(std::string_view s, std::size_t at) {
  const auto byte = [&](std::size_t i) { return at + i < s.size() ? static_cast<unsigned char>(s[at + i]) : 0u; };
  const auto tail = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned b = byte(0), c = byte(1);
  if (b < 0x80) return 1;
  if (b >= 0xC2 && b <= 0xDF) return tail(1) ? 2 : 0;
  if (b >= 0xE0 && b <= 0xEF) {
    const bool fits = tail(1) && (b != 0xE0 || c >= 0xA0) && (b != 0xED || c < 0xA0);
    return fits && tail(2) ? 3 : 0;
  }
  if (b >= 0xF0 && b <= 0xF4) {
    const bool fits = tail(1) && (b != 0xF0 || c >= 0x90) && (b != 0xF4 || c < 0x90);
    return fits && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

/// The characters of a text; what is no character becomes U+FFFD.
std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> all;
  for (std::size_t i = 0; i < text.size();) {
    const auto length = sequence(text, i);
    const auto first = static_cast<unsigned char>(text[i]);
    const bool control = (first < 0x20 && first != '\n' && first != '\t') || first == 0x7F ||
                         (length == 2 && first == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0);
    // U+FFFE and U+FFFF are no characters of a page.
    const bool none = length == 3 && first == 0xEF && text.substr(i, 2) == "\xEF\xBF" && static_cast<unsigned char>(text[i + 2]) >= 0xBE;
    all.push_back(length == 0 || control || none ? kReplacement : text.substr(i, length));
    i += std::max<std::size_t>(length, 1);
  }
  return all;
}

void put(std::string& out, std::string_view character) {
  if (character == "&")
    out += "&amp;";
  else if (character == "<")
    out += "&lt;";
  else if (character == ">")
    out += "&gt;";
  else if (character == "\"")
    out += "&quot;";
  else if (character == "'")
    out += "&#39;";
  else
    out += character;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  for (const auto c : characters(text)) put(out, c);
  return out;
}

std::string visible(std::string_view text, std::size_t most) {
  auto all = characters(text);
  const bool cut = all.size() > most;
  if (cut) all.erase(all.begin(), all.end() - static_cast<std::ptrdiff_t>(most));
  std::size_t first = 0, last = all.size();
  while (first < last && all[first] == " ") ++first;
  while (last > first && all[last - 1] == " ") --last;
  std::string out = cut ? "<bdi>…" : "<bdi>";
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i] == "\n")
      out += "↵";
    else if (all[i] == "\t")
      out += "→";
    else if (all[i] == " " && (i < first || i >= last))
      out += "·";
    else
      put(out, all[i]);
  }
  return out + "</bdi>";
}

std::string beginning(std::string_view text, std::size_t most) {
  const auto all = characters(text);
  std::string out;
  for (std::size_t i = 0; i < std::min(most, all.size()); ++i) out += all[i];
  return all.size() > most ? out + "…" : out;
}

std::string short_exponent(const std::string& formatted) {
  const auto e = formatted.find('e');
  if (e == std::string::npos) return formatted;
  return fmt::format("{}e{}", formatted.substr(0, e), std::stoi(formatted.substr(e + 1)));
}

std::string number(double value) {
  if (!std::isfinite(value)) return "–";
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size < 1e-3) return short_exponent(fmt::format("{:.2e}", value));
  const int digits = std::clamp(2 - static_cast<int>(std::floor(std::log10(size))), 0, 6);
  return fmt::format("{:.{}f}", value, digits);
}

std::string with_error(double value, double error) {
  if (!std::isfinite(value)) return "–";
  if (!(error > 0) || !std::isfinite(error)) return number(value);  // no digits that could say where both end
  const int digits = std::clamp(1 - static_cast<int>(std::floor(std::log10(error))), 0, 9);
  return plus_minus(value, error, digits);
}

std::string data(double value, const std::string& shown) {
  return std::isfinite(value) ? fmt::format("<data value=\"{}\">{}</data>", value, shown) : shown;
}
std::string data(std::int64_t value, const std::string& shown) { return fmt::format("<data value=\"{}\">{}</data>", value, shown); }

std::string Table::html() const {
  std::string out = style.empty() ? "<table>\n" : fmt::format("<table class=\"{}\">\n", style);
  if (!caption.empty()) out += "<caption>" + caption + "</caption>\n";
  if (!head.empty()) {
    out += "<thead><tr>";
    for (const auto& cell : head) out += "<th scope=\"col\">" + cell + "</th>";
    out += "</tr></thead>\n";
  }
  out += "<tbody>\n";
  for (const auto& row : rows) {
    out += "<tr>";
    for (std::size_t i = 0; i < row.size(); ++i) out += i == 0 ? "<th scope=\"row\">" + row[i] + "</th>" : "<td>" + row[i] + "</td>";
    out += "</tr>\n";
  }
  return scrolled(out + "</tbody></table>", caption.empty() ? label : caption);
}

std::string scrolled(const std::string& html, const std::string& label) {
  return "<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"" + label + "\">" + html + "</div>\n";
}

std::string folded(const std::string& summary, const std::string& html) {
  return "<details><summary>" + summary + "</summary>\n" + html + "</details>\n";
}

std::string filled(std::string_view form, const std::vector<std::pair<std::string_view, std::string>>& values) {
  std::string out;
  while (true) {
    const auto open = form.find("{{");
    out += form.substr(0, open);
    if (open == std::string_view::npos) return out;
    const auto close = form.find("}}", open);
    if (close == std::string_view::npos) throw std::invalid_argument("[evaluate] filled: a place is not closed");
    const auto name = form.substr(open + 2, close - open - 2);
    const auto value = std::find_if(values.begin(), values.end(), [&](const auto& v) { return v.first == name; });
    if (value == values.end()) throw std::invalid_argument("[evaluate] filled: no value for " + std::string(name));
    out += value->second;
    form.remove_prefix(close + 2);
  }
}

}  // namespace lquant::evaluate
