#include "oracle/codec_range.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lquant::oracle {
namespace {

/// To 8 significant bits, ties to even; the values here are far from subnormal.
double to_bf16(double x) {
  if (x == 0) return 0;
  const int exponent = std::ilogb(x);
  return std::ldexp(std::nearbyint(std::ldexp(x, 7 - exponent)), exponent - 7);
}

double error_of(const std::vector<float>& w, const std::vector<float>& h, int codes, double scale, double bias) {
  double sum = 0;
  for (std::size_t j = 0; j < w.size(); ++j) {
    double least = std::numeric_limits<double>::infinity();
    for (int q = 0; q < codes; ++q) least = std::min(least, std::abs(w[j] - to_bf16(to_bf16(scale * q) + bias)));
    sum += h[j] * least * least;
  }
  return sum;
}

/// The bf16 values of [low, high], both positive.
std::vector<double> values_between(double low, double high) {
  std::vector<double> found;
  for (double x = to_bf16(low); x <= high; x += std::ldexp(1.0, std::ilogb(x) - 7)) {
    if (x >= low) found.push_back(x);
  }
  return found;
}

}  // namespace

double exhaustive_range_error(const std::vector<float>& w, const std::vector<float>& h, int bits, double least) {
  const double min = *std::min_element(w.begin(), w.end()), max = *std::max_element(w.begin(), w.end());
  const int codes = 1 << bits;
  double best = std::numeric_limits<double>::infinity();
  for (double edge : values_between(-least * min, -min)) {
    for (double scale : values_between((least * max + edge) / (codes - 1), (max + edge) / (codes - 1)))
      best = std::min(best, error_of(w, h, codes, scale, -edge));
  }
  for (double edge : values_between(least * max, max)) {
    for (double scale : values_between((edge - least * min) / (codes - 1), (edge - min) / (codes - 1)))
      best = std::min(best, error_of(w, h, codes, -scale, edge));
  }
  return best;
}

}  // namespace lquant::oracle
