#include "oracle/kernels_linear.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <cmath>

namespace lquant::oracle::linear {

Matrix matrix(const mx::array& x) {
  auto plain = mx::contiguous(mx::astype(x, mx::float32));
  mx::eval(plain);
  const std::int64_t columns = x.ndim() == 0 ? 1 : x.shape(-1);
  const float* data = plain.data<float>();
  return {columns == 0 ? 0 : static_cast<std::int64_t>(x.size()) / columns, columns, {data, data + x.size()}};
}

Matrix transposed(const Matrix& x) {
  Matrix y{x.columns, x.rows, std::vector<double>(x.values.size())};
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t j = 0; j < x.columns; ++j) y(j, i) = x(i, j);
  }
  return y;
}

Matrix absolute(const Matrix& x) {
  Matrix y = x;
  for (auto& v : y.values) v = std::abs(v);
  return y;
}

Matrix add(const Matrix& a, const Matrix& b) {
  Matrix y = a;
  for (std::size_t i = 0; i < y.values.size(); ++i) y.values[i] += b.values[i];
  return y;
}

Matrix multiply(const Matrix& a, const Matrix& b) {
  Matrix y{a.rows, b.columns, std::vector<double>(a.rows * b.columns)};
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.columns; ++k) {
      for (std::int64_t j = 0; j < b.columns; ++j) y(i, j) += a(i, k) * b(k, j);
    }
  }
  return y;
}

Matrix rows(const Matrix& x, std::int64_t begin, std::int64_t end) {
  return {end - begin, x.columns, {x.values.begin() + begin * x.columns, x.values.begin() + end * x.columns}};
}

}  // namespace lquant::oracle::linear
