#include "evaluate/row_mean.h"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace lquant::evaluate {

Mean token_mean(const std::vector<RowSum>& rows) {
  double sum = 0, tokens = 0, count = 0;
  for (const auto& row : rows) {
    if (row.tokens == 0) continue;
    sum += row.sum;
    tokens += static_cast<double>(row.tokens);
    count += 1;
  }
  Mean mean{tokens > 0 ? sum / tokens : 0, std::numeric_limits<double>::quiet_NaN()};
  if (count < 2) return mean;
  double squares = 0;
  for (const auto& row : rows) {
    const double distance = row.sum - mean.value * static_cast<double>(row.tokens);
    if (row.tokens > 0) squares += distance * distance;
  }
  mean.error = std::sqrt(squares * count / (count - 1)) / tokens;
  return mean;
}

Mean paired_difference(const std::vector<RowSum>& rows, const std::vector<RowSum>& others) {
  if (rows.size() != others.size()) throw std::invalid_argument("[evaluate] paired_difference: as many rows of both");
  std::vector<RowSum> differences;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].tokens != others[r].tokens) throw std::invalid_argument("[evaluate] paired_difference: the same rows, with as many tokens");
    differences.push_back({rows[r].sum - others[r].sum, rows[r].tokens});
  }
  return token_mean(differences);
}

}  // namespace lquant::evaluate
