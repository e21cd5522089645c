#pragma once

#include <cstddef>
#include <string>
#include <string_view>

// What lm-eval's prompts owe to Python's strings: the same words for the same work, on UTF-8.
namespace lquant::evaluate {

/// str.strip() and str.rstrip(): Unicode's white space, not ASCII's alone.
std::string_view strip(std::string_view text);
std::string_view rstrip(std::string_view text);
std::string_view lstrip(std::string_view text);
/// len(str): code points. (An invalid byte counts as one.)
std::size_t code_points(std::string_view text);
/// str.capitalize() for Latin, Greek and Cyrillic letters: the first one upper case, all others lower case; other scripts stay as they are.
std::string capitalize(std::string_view text);
/// str.replace(from, to).
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

/// What lm-eval does to HellaSwag's texts, whose WikiHow half carries markup: strips, makes " [title]" a full stop, drops other brackets with what
/// is in them (on one line, up to the nearest closing one), then halves runs of two spaces.
std::string clean_wikihow(std::string_view text);

}  // namespace lquant::evaluate
