#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/multiversion.h"

// MLX's plain affine rule for one group, shared by plain quantization and the range search, which starts from it.
namespace lquant::codec {

struct Range {
  float min, max;
};

struct ScaleBias {
  float scale, bias;
};

/// Smallest and largest of n values, a multiple of 32; NaN is passed over.
LQUANT_INLINE Range range_of(const float* w, int n) {
  constexpr int kLanes = 32;
  alignas(64) float low[kLanes], high[kLanes];
  for (int k = 0; k < kLanes; ++k) low[k] = std::numeric_limits<float>::infinity(), high[k] = -low[k];
  for (int j = 0; j < n; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const float x = w[j + k];
      low[k] = x < low[k] ? x : low[k];
      high[k] = high[k] < x ? x : high[k];
    }
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) {
      low[k] = low[k + half] < low[k] ? low[k + half] : low[k];
      high[k] = high[k] < high[k + half] ? high[k + half] : high[k];
    }
  }
  return {low[0], high[0]};
}

/// The edge of larger magnitude is the bias, the scale points from it to the other edge, and is stretched so that zero is a whole number
/// of steps away from the edge. `top` is the largest code. In f32, whatever the weights are.
LQUANT_INLINE ScaleBias affine_rule(Range r, float top) {
  constexpr float kSmallest = 1e-7f;  // MLX's least scale
  const bool low_edge = std::abs(r.min) > std::abs(r.max);
  const float step = std::max((r.max - r.min) / top, kSmallest);
  const float scale = low_edge ? step : -step, edge = low_edge ? r.min : r.max;
  const float steps = std::rint(edge / scale);
  return steps != 0 ? ScaleBias{edge / steps, edge} : ScaleBias{scale, 0};
}

/// Codes of n values by MLX's formula; NaN becomes 0.
LQUANT_INLINE void affine_codes(const float* w, int n, ScaleBias at, float top, std::uint8_t* codes) {
  for (int j = 0; j < n; ++j) {
    float q = std::rint((w[j] - at.bias) / at.scale);
    q = q > 0 ? q : 0;
    q = q < top ? q : top;
    codes[j] = static_cast<std::uint8_t>(static_cast<std::int32_t>(q));
  }
}

}  // namespace lquant::codec
