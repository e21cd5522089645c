#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// What a page is made of. Everything that was read from a folder or a text passes through escape() or visible() and through nothing else, so
// that it stays text whatever it holds.
namespace lquant::evaluate {

/// Text as HTML's text or as the value of a quoted attribute: & < > " ' become references. Bytes that are no UTF-8 and characters that a page
/// may not hold (controls but newline and tab) become U+FFFD.
std::string escape(std::string_view text);

/// A token's or a context's text, escaped and set apart from the direction of what is around it (<bdi>): line ends show as ↵, tabs as →, and the
/// spaces at either end as ·. Of a longer text the last `most` characters are kept, behind an ellipsis.
std::string visible(std::string_view text, std::size_t most = 60);

/// The first `most` characters, and an ellipsis where there are more. Not escaped.
std::string beginning(std::string_view text, std::size_t most);

/// "0.0123", "1.23e-5", "12.3": three digits that count. "–" for what is no number.
std::string number(double value);
/// "1e-05" as "1e-5"; what has no exponent as it is.
std::string short_exponent(const std::string& formatted);
/// "0.0123 ± 0.0004": the error's two leading digits say where both end. number() alone where the error is 0 or not known.
std::string with_error(double value, double error);

/// A figure as the page shows it, with the exact number beside it for programs: <data value="0.0123456">0.0123</data>. `shown`
/// alone for what is no number.
std::string data(double value, const std::string& shown);
std::string data(std::int64_t value, const std::string& shown);

/// Cells of HTML. The first of each row heads it. `caption` and cells are HTML already.
struct Table {
  std::string caption;
  std::vector<std::string> head;
  std::vector<std::vector<std::string>> rows;
  std::string style;            ///< a class of page.css
  std::string label = "table";  ///< what it is called where it has no caption
  std::string html() const;
};

/// What may be wider than the page, in a box that scrolls and that the keyboard reaches. `label` is HTML without tags.
std::string scrolled(const std::string& html, const std::string& label);

/// What stands behind a figure, folded away.
std::string folded(const std::string& summary, const std::string& html);

/// The template with {{name}} replaced by what `values` gives for it, once: a value that looks like a place stays as it is.
/// Throws std::invalid_argument for a place without a value.
std::string filled(std::string_view form, const std::vector<std::pair<std::string_view, std::string>>& values);

}  // namespace lquant::evaluate
