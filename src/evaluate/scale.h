#pragma once

#include <string>
#include <vector>

namespace lquant::evaluate {

struct Tick {
  double value = 0;
  std::string label;
};

/// A round number as an axis shows it: "0.01", "1e-5", "200".
std::string plain(double value);

/// From values to places along an axis. `from` and `to` are the places of `low` and `high`; to < from for an axis that grows upwards. What lies
/// outside is put on the nearer end.
struct Scale {
  bool logarithmic = false;
  double low = 0, high = 1;
  double from = 0, to = 1;
  double at(double value) const;
  /// Of a linear axis some five round numbers; of a logarithmic one the powers of ten and, below three decades, 2 and 5 times those.
  std::vector<Tick> ticks() const;
};

/// Holds all values > 0 of a logarithmic axis, widened to a 1, 2 or 5 times a power of ten; 0.1 … 1 when there is none.
Scale log_scale(const std::vector<double>& values, double from, double to);
/// Holds all values, with a margin of a tenth.
Scale linear_scale(const std::vector<double>& values, double from, double to);

}  // namespace lquant::evaluate
