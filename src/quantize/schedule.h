#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lquant::quantize {

/// The share of the peak rate at a step counted from 0: a rise over the share `warmup` of the steps, then half a cosine that would reach 0 one step
/// after the last.
inline float rate_at(int step, int steps, float warmup) {
  const double rise = std::max(1.0, std::floor(double{warmup} * steps));
  if (step < rise) return static_cast<float>((step + 1) / rise);
  const double t = (step + 1 - rise) / (steps + 1 - rise);
  return static_cast<float>(0.5 * (1 + std::cos(std::numbers::pi * t)));
}

}  // namespace lquant::quantize
