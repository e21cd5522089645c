#include "base/nearest.h"

#include <algorithm>
#include <cctype>
#include <numeric>

namespace lquant {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

/// Levenshtein's distance with exchanged neighbours as one step (optimal string alignment), three rows of its table at a time.
std::size_t slips(const std::string& a, const std::string& b) {
  std::vector<std::size_t> two_up, up, row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    two_up = std::move(up);
    up = row;
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({up[j] + 1, row[j - 1] + 1, up[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], two_up[j - 2] + 1);
    }
  }
  return row.back();
}

}  // namespace

std::optional<std::string> nearest(const std::string& name, const std::vector<std::string>& names) {
  std::optional<std::string> found;
  std::size_t fewest = std::max<std::size_t>(1, name.size() / 3) + 1;
  for (const auto& candidate : names) {
    const auto count = slips(lower(name), lower(candidate));
    if (count >= fewest) continue;
    fewest = count;
    found = candidate;
  }
  return found;
}

std::string did_you_mean(const std::string& name, const std::vector<std::string>& names) {
  const auto found = nearest(name, names);
  return found ? "; did you mean " + *found + "?" : "";
}

}  // namespace lquant
