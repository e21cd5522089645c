#include "oracle/kernels_causal_conv.h"

#include <cmath>

namespace lquant::oracle {

std::vector<double> causal_conv(const ConvSize& size, const std::vector<double>& x, const std::vector<double>& taps,
                                const std::vector<std::int32_t>& segments, std::vector<double>* magnitudes) {
  const auto [batch, tokens, channels, count] = size;
  std::vector<double> y(x.size());
  if (magnitudes) magnitudes->assign(x.size(), 0);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t back = 0; back < count && back <= t; ++back) {
          if (back > 0 && !segments.empty() && segments[b * tokens + t - back] != segments[b * tokens + t - back + 1]) break;
          const double term = taps[c * count + count - 1 - back] * x[(b * tokens + t - back) * channels + c];
          y[(b * tokens + t) * channels + c] += term;
          if (magnitudes) (*magnitudes)[(b * tokens + t) * channels + c] += std::abs(term);
        }
      }
    }
  }
  return y;
}

}  // namespace lquant::oracle
