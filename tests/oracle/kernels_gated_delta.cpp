#include "oracle/kernels_gated_delta.h"

#include <algorithm>
#include <cmath>

namespace lquant::oracle {

DeltaResult gated_delta(const DeltaSize& size, const DeltaInputs& in) {
  const auto [batch, tokens, key_heads, value_heads, key_dim, value_dim] = size;
  const std::int64_t rates = static_cast<std::int64_t>(in.log_decay.size()) / (batch * tokens * value_heads);
  DeltaResult result;
  result.y.resize(batch * tokens * value_heads * value_dim);
  result.state = in.state;
  result.state.resize(batch * value_heads * value_dim * key_dim);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < value_heads; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        const std::int64_t at = b * tokens + t, key_head = h / (value_heads / key_heads);
        const bool begins = !in.segments.empty() && (t == 0 || in.segments[at] != in.segments[at - 1]);
        const auto decay = [&](std::int64_t i) { return begins ? 0 : std::exp(in.log_decay[(at * value_heads + h) * rates + i % rates]); };
        const double beta = in.beta[at * value_heads + h];
        const double *q = &in.q[(at * key_heads + key_head) * key_dim], *k = &in.k[(at * key_heads + key_head) * key_dim];
        for (std::int64_t d = 0; d < value_dim; ++d) {
          double* row = &result.state[((b * value_heads + h) * value_dim + d) * key_dim];
          const double v = in.v[(at * value_heads + h) * value_dim + d];
          double known = 0, read = 0, square = 0;
          for (std::int64_t i = 0; i < key_dim; ++i) known += (row[i] *= decay(i)) * k[i];
          for (std::int64_t i = 0; i < key_dim; ++i) {
            row[i] += beta * (v - known) * k[i];
            read += row[i] * q[i];
            square += row[i] * row[i];
          }
          result.y[(at * value_heads + h) * value_dim + d] = read;
          result.largest = std::max({result.largest, std::sqrt(square), std::abs(v), std::abs(read)});
        }
      }
    }
  }
  return result;
}

}  // namespace lquant::oracle
