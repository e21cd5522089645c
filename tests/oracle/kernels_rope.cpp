#include "oracle/kernels_rope.h"

#include <cmath>

namespace lquant::oracle {

std::vector<double> rope(const std::vector<double>& x, const std::vector<double>& inv_freq, const std::vector<int>& positions, int heads, int width,
                         double magnitude, bool interleaved) {
  const int pairs = static_cast<int>(inv_freq.size());
  auto y = x;
  for (std::size_t row = 0; row < positions.size() * heads; ++row) {
    for (int f = 0; f < pairs; ++f) {
      const double angle = positions[row / heads] * inv_freq[f];
      const std::size_t first = row * width + (interleaved ? 2 * f : f), second = row * width + (interleaved ? 2 * f + 1 : f + pairs);
      y[first] = magnitude * (x[first] * std::cos(angle) - x[second] * std::sin(angle));
      y[second] = magnitude * (x[first] * std::sin(angle) + x[second] * std::cos(angle));
    }
  }
  return y;
}

}  // namespace lquant::oracle
