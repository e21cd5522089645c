#include "oracle/kernels_wkv.h"

#include <algorithm>
#include <cstddef>

namespace lquant::oracle {

WkvOutput wkv(const WkvInput& in) {
  const std::size_t width = in.width, square = width * width;
  WkvOutput out;
  out.y.resize(in.v.size());
  out.state = in.first.empty() ? std::vector<double>(in.batch * in.heads * square) : in.first;
  for (int batch = 0; batch < in.batch; ++batch) {
    for (int head = 0; head < in.heads; ++head) {
      double* state = &out.state[(static_cast<std::size_t>(batch) * in.heads + head) * square];
      for (int t = 0; t < in.tokens; ++t) {
        const std::size_t token = static_cast<std::size_t>(batch) * in.tokens + t, at = (token * in.heads + head) * width;
        if (t > 0 && !in.segments.empty() && in.segments[token] != in.segments[token - 1]) std::fill(state, state + square, 0.0);
        for (std::size_t i = 0; i < width; ++i) {
          double* row = state + i * width;
          double u = 0, y = 0;
          for (std::size_t j = 0; j < width; ++j) u += row[j] * in.a[at + j];
          for (std::size_t j = 0; j < width; ++j) {
            row[j] = row[j] * in.w[at + j] + u * in.b[at + j] + in.v[at + i] * in.k[at + j];
            y += row[j] * in.r[at + j];
          }
          out.y[at + i] = y;
        }
      }
    }
  }
  return out;
}

}  // namespace lquant::oracle
