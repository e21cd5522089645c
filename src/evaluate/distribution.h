#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

namespace lquant::evaluate {

/// How values of very different size are spread: counts on a logarithmic axis, and what a share of them stays below.
struct Distribution {
  static constexpr int kPerDecade = 5;  ///< bins
  int first_decade = 0;                 ///< the bins begin at 10^first_decade
  std::vector<std::int64_t> counts;     ///< bin i holds 10^(first + i/5) ≤ v < 10^(first + (i+1)/5), the last its upper edge too
  std::int64_t below = 0;               ///< values under the first bin: zeros, and what rounding makes of zero
  double median = 0, p90 = 0, p99 = 0, max = 0;

  double edge(std::size_t i) const;
  nlohmann::ordered_json to_json() const;
};

/// The decades [first, last) that the bins of some values should span: up to the largest; down to the 1st percentile, at most six of them.
struct Decades {
  int first = -1, last = 0;
};
Decades decades_of(std::vector<float> values);
/// The smallest decades that hold both.
Decades joined(Decades a, Decades b);

/// Throws std::invalid_argument for no values. The quantile q is the sorted values' element floor(q · (n − 1)), as Quality::kl_p99.
Distribution distribution_of(std::vector<float> values, Decades decades);

}  // namespace lquant::evaluate
