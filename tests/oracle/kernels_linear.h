#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <vector>

// Linear algebra the slow way, in double.
namespace lquant::oracle::linear {

namespace mx = mlx::core;

struct Matrix {
  std::int64_t rows = 0, columns = 0;
  std::vector<double> values;
  double& operator()(std::int64_t i, std::int64_t j) { return values[i * columns + j]; }
  double operator()(std::int64_t i, std::int64_t j) const { return values[i * columns + j]; }
};

/// A float32 or bfloat16 array as [product of leading axes, last axis]; evaluates it.
Matrix matrix(const mx::array& x);
Matrix transposed(const Matrix& x);
Matrix absolute(const Matrix& x);
Matrix add(const Matrix& a, const Matrix& b);
Matrix multiply(const Matrix& a, const Matrix& b);
/// Rows begin … end.
Matrix rows(const Matrix& x, std::int64_t begin, std::int64_t end);

}  // namespace lquant::oracle::linear
