#ifdef LQUANT_ONEDNN
#include "kernels/gemm.h"

#include <gtest/gtest.h>
#include <mlx/types/half_types.h>

#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "kernels/parallel.h"

namespace lquant::kernels {
namespace {

namespace mx = mlx::core;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// A matrix in memory with three unused elements (NaN) at the end of every row.
struct Stored {
  std::int64_t rows, columns;
  mx::Dtype dtype;
  std::vector<float> f32;
  std::vector<mx::bfloat16_t> bf16;

  Stored(std::int64_t rows, std::int64_t columns, mx::Dtype dtype) : rows(rows), columns(columns), dtype(dtype) {
    f32.assign(rows * row(), kNan);
    bf16.assign(rows * row(), mx::bfloat16_t(kNan));
  }
  void fill(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        bf16[i * row() + j] = mx::bfloat16_t(f32[i * row() + j] = normal(random));
      }
    }
  }
  std::int64_t row() const { return columns + 3; }
  double at(std::int64_t i, std::int64_t j) const { return dtype == mx::float32 ? f32[i * row() + j] : float(bf16[i * row() + j]); }
  /// All elements, row by row of the matrix or of its transpose.
  std::vector<double> doubles(bool transposed) const {
    std::vector<double> all(rows * columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) all[transposed ? j * rows + i : i * columns + j] = at(i, j);
    }
    return all;
  }
  void* data() { return dtype == mx::float32 ? static_cast<void*>(f32.data()) : bf16.data(); }
};

struct Case {
  std::int64_t m, n, k;
  bool ta, tb;
  mx::Dtype a, b, c;
  float alpha, beta;
  int bias;  ///< 0 none, 1 f32, 2 bf16
};

void check(const Case& x) {
  SCOPED_TRACE(testing::Message() << x.m << "x" << x.n << "x" << x.k << " t" << x.ta << x.tb << " bf16 " << (x.a == mx::bfloat16)
                                  << (x.b == mx::bfloat16) << (x.c == mx::bfloat16) << " alpha " << x.alpha << " beta " << x.beta << " bias "
                                  << x.bias);
  Stored a(x.ta ? x.k : x.m, x.ta ? x.m : x.k, x.a), b(x.tb ? x.n : x.k, x.tb ? x.k : x.n, x.b), c(x.m, x.n, x.c),
      bias(1, x.n, x.bias == 2 ? mx::bfloat16 : mx::float32);
  a.fill(1);
  b.fill(2);
  bias.fill(3);
  if (x.beta != 0) c.fill(4);  // else it stays NaN: with beta 0 what lies there must not matter
  const Stored old = c;
  gemm(x.m, x.n, x.k, x.alpha, {a.data(), x.a, a.row(), x.ta}, {b.data(), x.b, b.row(), x.tb}, x.beta, c.data(), x.c, c.row(),
       x.bias ? bias.data() : nullptr, bias.dtype);
  // Each of K products and sums, and a few scalings, may round by half a unit of f32 (2^-24) of the terms' absolute sum; a bf16
  // result by 2^-8 of itself once more.
  const double f32 = (x.k + 8) * std::ldexp(1, -24), bf16 = x.c == mx::bfloat16 ? std::ldexp(1, -8) : 0;
  double worst = 0;
  const auto rows = a.doubles(x.ta), columns = b.doubles(!x.tb);
  for (std::int64_t i = 0; i < x.m; ++i) {
    for (std::int64_t j = 0; j < x.n; ++j) {
      double sum = 0, size = 0;
      for (std::int64_t l = 0; l < x.k; ++l) {
        const double product = rows[i * x.k + l] * columns[j * x.k + l];
        sum += product;
        size += std::abs(product);
      }
      sum *= x.alpha;
      size *= std::abs(x.alpha);
      for (double term : {x.beta != 0 ? x.beta * old.at(i, j) : 0.0, x.bias ? bias.at(0, j) : 0.0}) {
        sum += term;
        size += std::abs(term);
      }
      const double error = std::abs(c.at(i, j) - sum), bound = f32 * size * (1 + bf16) + bf16 * std::abs(sum);
      worst = std::max(worst, error == 0 ? 0 : std::isnan(error) ? 1e30 : error / bound);
    }
  }
  EXPECT_LE(worst, 1);
  for (std::int64_t i = 0; i < x.m; ++i) {
    for (std::int64_t j = x.n; j < c.row(); ++j) EXPECT_TRUE(std::isnan(c.at(i, j))) << "wrote beyond a row";
  }
}

TEST(Gemm, EqualsDoubleForEveryShapeLayoutAndDtype) {
  const std::int64_t sizes[][3] = {{1, 1, 1},    {1, 3, 7},     {3, 1, 130},  {1, 8191, 7}, {63, 33, 65},
                                   {64, 33, 65}, {66, 2100, 9}, {1100, 5, 9}, {70, 3, 4200}};
  const mx::Dtype f = mx::float32, b = mx::bfloat16;
  const mx::Dtype dtypes[][3] = {{f, f, f}, {b, b, f}, {b, b, b}, {f, b, f}, {b, f, b}};
  const float alphas[] = {1, 1, 0.5f, -2}, betas[] = {0, 1, 0, 0.25f, 0};
  int number = 0;
  for (const auto& size : sizes) {
    for (const auto& dtype : dtypes) {
      for (int repeat = 0; repeat < 3; ++repeat, ++number) {
        const int layout = number % 4;
        check({size[0], size[1], size[2], layout % 2 == 1, layout / 2 == 1, dtype[0], dtype[1], dtype[2], alphas[number % 4], betas[number % 5],
               number % 3});
      }
    }
  }
}

TEST(Gemm, TakesEveryMixOfAlphaBetaAndBias) {
  for (auto dtype : {mx::float32, mx::bfloat16}) {
    for (float alpha : {1.0f, -0.5f}) {
      for (float beta : {0.0f, 1.0f, 0.5f}) {
        for (int bias : {0, 1, 2}) {
          for (std::int64_t m : {5, 70}) check({m, 5, 2100, false, true, dtype, dtype, dtype, alpha, beta, bias});
        }
      }
    }
  }
}

TEST(Gemm, AcceptsEmptySizes) {
  for (float beta : {0.0f, 0.5f}) {
    for (auto dtype : {mx::float32, mx::bfloat16}) check({3, 4, 0, false, false, dtype, dtype, dtype, 1, beta, 1});
  }
  gemm(0, 4, 4, 1, {nullptr, mx::float32, 4}, {nullptr, mx::float32, 4}, 0, nullptr, mx::float32, 4);
  gemm(4, 0, 4, 1, {nullptr, mx::float32, 4}, {nullptr, mx::float32, 4}, 0, nullptr, mx::float32, 4);
}

TEST(Gemm, RunsInsideParallelRegionsAndOnSeveralThreads) {
  parallel_for(8, 1, [](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end; ++i) check({70 + i % 2, 33, 40, i % 2 == 0, true, mx::bfloat16, mx::bfloat16, mx::float32, 1, 0, 1});
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) threads.emplace_back([] { check({70, 33, 40, false, true, mx::float32, mx::float32, mx::float32, 1, 0, 0}); });
  for (auto& thread : threads) thread.join();
}

TEST(Gemm, RefusesOtherDtypes) {
  float one = 1;
  EXPECT_THROW(gemm(1, 1, 1, 1, {&one, mx::int32, 1}, {&one, mx::float32, 1}, 0, &one, mx::float32, 1), std::invalid_argument);
}

TEST(Gemm, CopiesBetweenDtypesAndLayouts) {
  Stored a(70, 33, mx::float32), b(33, 70, mx::bfloat16);
  a.fill(1);
  copy_matrix(33, 70, {a.data(), a.dtype, a.row(), true}, b.data(), b.dtype, b.row());
  for (int i = 0; i < 33; ++i) {
    for (int j = 0; j < 70; ++j) EXPECT_EQ(b.at(i, j), float(mx::bfloat16_t(static_cast<float>(a.at(j, i)))));
  }
}

}  // namespace
}  // namespace lquant::kernels
#endif
