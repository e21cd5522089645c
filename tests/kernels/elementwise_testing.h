#pragma once

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/primitive.h"

#ifdef _OPENMP
#include <omp.h>
#endif

// What the tests of norms, rotations, activations, embeddings and routing share.
namespace lquant::kernels::testing {

namespace mx = mlx::core;
using Values = std::vector<double>;

inline constexpr double kF32 = 0x1p-24;  ///< unit roundoff: half the distance from 1 to the next number

inline double unit(mx::Dtype dtype) { return dtype == mx::float32 ? kF32 : dtype == mx::bfloat16 ? 0x1p-8 : 0x1p-11; }

inline const std::vector<mx::Dtype> kDtypes = {mx::float32, mx::bfloat16, mx::float16};

/// True where MLX's own ops compute: element-wise ops of f16 everywhere, and all dtypes where the CPU kernels do not serve (on a GPU, or
/// with LQUANT_KERNELS=mlx).
inline bool on_mlx(mx::Dtype dtype) { return dtype == mx::float16 || !cpu_kernels(); }

/// What rounding to a dtype costs below its smallest normal number: half a step. That of f32 and bf16 is below all that is compared.
inline double tiny(mx::Dtype dtype) { return dtype == mx::float16 ? 0x1p-25 : 0; }

inline mx::array normal(const mx::Shape& shape, mx::Dtype dtype, int seed, float scale = 1, float mean = 0) {
  auto result = mx::astype(mx::random::normal(shape, mx::float32, mean, scale, mx::random::key(seed)), dtype);
  mx::eval(result);
  return result;
}

inline Values doubles(const mx::array& x) {
  auto f32 = mx::contiguous(mx::astype(x, mx::float32));
  mx::eval(f32);
  return Values(f32.data<float>(), f32.data<float>() + f32.size());
}

inline void expect_close(const mx::array& got, const Values& want, const Values& tolerance, const char* what) {
  const auto values = doubles(got);
  ASSERT_EQ(values.size(), want.size()) << what;
  for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(values[i], want[i], tolerance[i]) << what << ", element " << i;
}

/// Gradient of Σ cotangent · f(x) by central differences in double. With h = 1e-4 the error is h²·f‴/6 + ε/h, about 1e-8 of the values
/// at hand, which kDifference covers.
inline constexpr double kDifference = 1e-7;
inline Values numeric_gradient(const std::function<Values(const Values&)>& f, Values x, const Values& cotangent) {
  constexpr double h = 1e-4;
  const auto weighted = [&] {
    const auto y = f(x);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * cotangent[i];
    return sum;
  };
  Values gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + h;
    const double above = weighted();
    x[i] = kept - h;
    gradient[i] = (above - weighted()) / (2 * h);
    x[i] = kept;
  }
  return gradient;
}

inline bool same_bytes(const mx::array& a, const mx::array& b) {
  auto x = mx::contiguous(a), y = mx::contiguous(b);
  mx::eval(x, y);
  return x.shape() == y.shape() && x.dtype() == y.dtype() && std::memcmp(x.data<char>(), y.data<char>(), x.nbytes()) == 0;
}

/// make() must give the same bytes on one, two and three threads of the CPU.
inline void expect_thread_independent(const std::function<std::vector<mx::array>()>& make) {
  if (mx::default_device() != mx::Device::cpu) GTEST_SKIP() << "MLX's sums over scattered rows have no fixed order on a GPU";
#ifdef _OPENMP
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  auto alone = make();
  mx::eval(alone);
  for (int threads : {2, 3}) {
    omp_set_num_threads(threads);
    auto shared = make();
    mx::eval(shared);
    ASSERT_EQ(shared.size(), alone.size());
    for (std::size_t i = 0; i < alone.size(); ++i) EXPECT_TRUE(same_bytes(alone[i], shared[i])) << "result " << i << ", threads " << threads;
  }
  omp_set_num_threads(before);
#endif
}

}  // namespace lquant::kernels::testing
