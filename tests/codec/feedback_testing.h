#pragma once

#include <mlx/mlx.h>

#include <cmath>
#include <vector>

#include "codec/feedback.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "kernels/cholesky.h"
#include "oracle/codec_gptq.h"

// The problems that the tests of feedback.h solve.
namespace lquant::codec {

inline oracle::Matrix as_matrix(const mx::array& x) {
  auto host = mx::contiguous(mx::copy(mx::astype(x, mx::float32), mx::Device::cpu), false, mx::Device::cpu);
  host.eval();
  oracle::Matrix m(host.shape(0), std::vector<double>(host.shape(1)));
  for (int i = 0; i < host.shape(0); ++i)
    for (int j = 0; j < host.shape(1); ++j) m[i][j] = host.data<float>()[i * host.shape(1) + j];
  return m;
}

inline oracle::Matrix difference(const oracle::Matrix& a, const oracle::Matrix& b) {
  auto d = a;
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::size_t j = 0; j < a[i].size(); ++j) d[i][j] -= b[i][j];
  return d;
}

/// Weights and the damped second moments of correlated inputs.
struct Problem {
  Problem(int rows, int k, unsigned seed) : w(mx::random::normal({rows, k}, mx::float32, mx::random::key(seed))), hessian(0) {
    const auto mix = mx::add(mx::eye(k), mx::multiply(mx::random::normal({k, k}, mx::float32, mx::random::key(seed + 1)),
                                                      mx::array(0.5f / std::sqrt(static_cast<float>(k)))));
    const auto common = mx::random::normal({3 * k, 1}, mx::float32, mx::random::key(seed + 3));
    const auto x = mx::matmul(mx::add(mx::random::normal({3 * k, k}, mx::float32, mx::random::key(seed + 2)), common), mix);
    hessian =
        mx::add(mx::divide(mx::matmul(mx::transpose(x), x), mx::array(3.0f * static_cast<float>(k))), mx::multiply(mx::eye(k), mx::array(0.05f)));
    // Exactly symmetric, as kernels::gram makes it.
    hessian = mx::add(mx::triu(hessian), mx::transpose(mx::triu(hessian, 1)));
    mx::eval(w, hessian);
  }
  mx::array unit() const {
    const auto factor = *kernels::upper_factor(hessian);
    auto u = mx::divide(factor, mx::expand_dims(mx::diagonal(factor), 0));
    u.eval();
    return u;
  }
  mx::array w, hessian;
};

inline Coded start_of(const Problem& p, const Format& format, mx::Dtype dtype = mx::float32) {
  const auto packed = range_search(p.w, format, std::nullopt, dtype).packed;
  return {unpack_codes(packed.codes, format.bits), packed.scales, *packed.biases};
}

inline std::vector<int> natural(int k, int group) {
  std::vector<int> groups(k);
  for (int j = 0; j < k; ++j) groups[j] = j / group;
  return groups;
}

inline double error_of(const Problem& p, const Coded& coded, const Format& format) {
  return oracle::quadratic_error(difference(as_matrix(p.w), as_matrix(values_of(coded, format))), as_matrix(p.hessian));
}

}  // namespace lquant::codec
