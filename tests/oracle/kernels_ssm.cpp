#include "oracle/kernels_ssm.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace lquant::oracle {

StateSpaceOutput state_space(const StateSpaceSize& s, const StateSpaceInput& in) {
  StateSpaceOutput out;
  out.y.resize(in.x.size());
  const std::size_t per_head = static_cast<std::size_t>(s.width) * s.state;
  out.state = in.first.empty() ? std::vector<double>(s.batch * s.heads * per_head) : in.first;
  for (int batch = 0; batch < s.batch; ++batch) {
    for (int head = 0; head < s.heads; ++head) {
      double* state = &out.state[(static_cast<std::size_t>(batch) * s.heads + head) * per_head];
      const int group = head / (s.heads / s.groups);
      for (int t = 0; t < s.tokens; ++t) {
        const std::size_t token = static_cast<std::size_t>(batch) * s.tokens + t;
        if (t > 0 && !in.segments.empty() && in.segments[token] != in.segments[token - 1]) std::fill(state, state + per_head, 0.0);
        const double dt = in.dt[token * s.heads + head], decay = std::exp(in.a[head] * dt);
        for (int p = 0; p < s.width; ++p) {
          const std::size_t at = (token * s.heads + head) * s.width + p;
          double y = 0;
          for (int n = 0; n < s.state; ++n) {
            const std::size_t shared = (token * s.groups + group) * s.state + n;
            double& h = state[static_cast<std::size_t>(p) * s.state + n];
            h = decay * h + dt * in.x[at] * in.b[shared];
            y += h * in.c[shared];
          }
          out.y[at] = y;
        }
      }
    }
  }
  return out;
}

StateSpaceOutput selective_scan(const SelectiveScanInput& in) {
  StateSpaceOutput out;
  out.y.resize(in.x.size());
  out.state = in.first.empty() ? std::vector<double>(static_cast<std::size_t>(in.batch) * in.channels * in.size) : in.first;
  for (int batch = 0; batch < in.batch; ++batch)
    for (int t = 0; t < in.tokens; ++t) {
      const std::size_t token = static_cast<std::size_t>(batch) * in.tokens + t;
      const bool begins = t > 0 && !in.segments.empty() && in.segments[token] != in.segments[token - 1];
      for (int channel = 0; channel < in.channels; ++channel) {
        const std::size_t at = token * in.channels + channel;
        double y = 0;
        for (int n = 0; n < in.size; ++n) {
          double& h = out.state[(static_cast<std::size_t>(batch) * in.channels + channel) * in.size + n];
          if (begins) h = 0;
          h = std::exp(in.a[static_cast<std::size_t>(channel) * in.size + n] * in.dt[at]) * h + in.dt[at] * in.x[at] * in.b[token * in.size + n];
          y += h * in.c[token * in.size + n];
        }
        out.y[at] = y;
      }
    }
  return out;
}

std::vector<double> linear_scan(int batch, int tokens, const std::vector<double>& a, const std::vector<double>& u, const std::vector<double>& first) {
  std::vector<double> h(u.size());
  const std::size_t width = u.size() / batch / tokens;
  for (int b = 0; b < batch; ++b)
    for (std::size_t m = 0; m < width; ++m) {
      double before = first.empty() ? 0 : first[b * width + m];
      for (int t = 0; t < tokens; ++t) {
        const std::size_t at = (static_cast<std::size_t>(b) * tokens + t) * width + m;
        before = h[at] = a[at] * before + u[at];
      }
    }
  return h;
}

}  // namespace lquant::oracle
