#include "oracle/codec_gptq.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lquant::oracle {
namespace {

double largest_eigenvalue(const Matrix& a) {
  std::vector<double> x(a.size(), 1);
  x[0] = 1.5;  // not an eigenvector of anything that a test makes
  double value = 0;
  for (int turn = 0; turn < 500; ++turn) {
    std::vector<double> y(a.size(), 0);
    double norm = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      for (std::size_t j = 0; j < a.size(); ++j) y[i] += a[i][j] * x[j];
      norm += y[i] * y[i];
    }
    value = std::sqrt(norm);
    for (std::size_t i = 0; i < a.size(); ++i) x[i] = y[i] / value;
  }
  return value;
}

}  // namespace

Matrix inverse(const Matrix& a) {
  const std::size_t n = a.size();
  Matrix left = a, right(n, std::vector<double>(n, 0));
  for (std::size_t i = 0; i < n; ++i) right[i][i] = 1;
  for (std::size_t p = 0; p < n; ++p) {
    const double pivot = left[p][p];  // positive definite: no exchange of rows is needed
    for (std::size_t j = 0; j < n; ++j) left[p][j] /= pivot, right[p][j] /= pivot;
    for (std::size_t i = 0; i < n; ++i) {
      if (i == p) continue;
      const double factor = left[i][p];
      for (std::size_t j = 0; j < n; ++j) left[i][j] -= factor * left[p][j], right[i][j] -= factor * right[p][j];
    }
  }
  return right;
}

double condition(const Matrix& a) { return largest_eigenvalue(a) * largest_eigenvalue(inverse(a)); }

Matrix upper_cholesky(const Matrix& a) {
  const std::size_t n = a.size();
  Matrix c(n, std::vector<double>(n, 0));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i; j < n; ++j) {
      double sum = a[i][j];
      for (std::size_t k = 0; k < i; ++k) sum -= c[k][i] * c[k][j];
      c[i][j] = i == j ? std::sqrt(sum) : sum / c[i][i];
    }
  }
  return c;
}

TextbookGptq textbook_gptq(Matrix w, const Matrix& hessian, const Matrix& scales, const Matrix& biases, int group, int top, const Matrix& taken) {
  const std::size_t n = w.size(), k = hessian.size();
  const auto c = upper_cholesky(inverse(hessian));
  TextbookGptq out{std::vector<std::vector<int>>(n, std::vector<int>(k)), Matrix(n, std::vector<double>(k)), Matrix(n, std::vector<double>(k, 0))};
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t j = 0; j < k; ++j) {
      const double s = scales[r][j / group], b = biases[r][j / group], at = (w[r][j] - b) / s;
      const double q = std::clamp(std::nearbyint(at), 0.0, static_cast<double>(top));
      out.codes[r][j] = static_cast<int>(q);
      const bool outside = at < -0.5 || at > top + 0.5;
      const double to_border = outside ? std::abs(at - q) - 0.5 : 0.5 - std::abs(at - q);
      // Below the first and above the last border there is no other code.
      out.margin[r][j] = at < 0 || at > top ? (outside ? std::numeric_limits<double>::infinity() : 0.5 * std::abs(s)) : to_border * std::abs(s);
      const double error = (w[r][j] - (s * taken[r][j] + b)) / c[j][j];
      for (std::size_t l = j + 1; l < k; ++l) {
        w[r][l] -= error * c[j][l];
        out.feedback[r][l] += std::abs(error * c[j][l]);
      }
    }
  }
  return out;
}

Aims aims_of(const Matrix& w, const Matrix& unit_upper, const Matrix& values) {
  Aims out{w, Matrix(w.size(), std::vector<double>(unit_upper.size(), 0))};
  for (std::size_t r = 0; r < w.size(); ++r) {
    for (std::size_t j = 0; j < unit_upper.size(); ++j) {
      for (std::size_t i = 0; i < j; ++i) {
        const double term = (w[r][i] - values[r][i]) * unit_upper[i][j];
        out.aim[r][j] += term;
        out.taken_up[r][j] += std::abs(term);
      }
    }
  }
  return out;
}

double quadratic_error(const Matrix& e, const Matrix& hessian) {
  double sum = 0;
  for (const auto& row : e)
    for (std::size_t i = 0; i < row.size(); ++i)
      for (std::size_t j = 0; j < row.size(); ++j) sum += row[i] * hessian[i][j] * row[j];
  return sum;
}

}  // namespace lquant::oracle
