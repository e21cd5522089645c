#pragma once

#include <cstdint>
#include <vector>

namespace lquant::oracle {

struct ConvSize {
  std::int64_t batch, tokens, channels, taps;
};

/// x [B, T, C], taps [C, K], segments [B, T] or empty; in double. `magnitudes`, when given, becomes Σ |taps · x| of each result.
std::vector<double> causal_conv(const ConvSize& size, const std::vector<double>& x, const std::vector<double>& taps,
                                const std::vector<std::int32_t>& segments, std::vector<double>* magnitudes = nullptr);

}  // namespace lquant::oracle
