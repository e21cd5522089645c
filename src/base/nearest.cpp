#include "base/nearest.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace lquant {
namespace {

/// Levenshtein's distance, one row of its table at a time.
std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j)
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])}));
  }
  return row.back();
}

}  // namespace

const std::string& nearest(const std::string& name, const std::vector<std::string>& names) {
  if (names.empty()) throw std::invalid_argument("[base] nearest needs a name to choose");
  return *std::min_element(names.begin(), names.end(), [&](const auto& a, const auto& b) { return edit_distance(name, a) < edit_distance(name, b); });
}

}  // namespace lquant
