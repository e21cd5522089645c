#include "oracle/kernels_head_loss.h"

#include <algorithm>
#include <cmath>

namespace lquant::oracle::head_loss {

Matrix logits(const End& end) {
  Matrix z = linear::multiply(end.hidden, linear::transposed(end.head));
  for (std::int64_t i = 0; i < z.rows; ++i) {
    for (std::int64_t j = 0; j < z.columns; ++j) {
      double value = (z(i, j) + (end.bias.empty() ? 0 : end.bias[j])) * end.multiplier;
      if (end.softcap != 0) value = end.softcap * std::tanh(value / end.softcap);
      z(i, j) = value / end.temperature;
    }
  }
  return z;
}

std::vector<double> log_softmax(const std::vector<double>& z) {
  const double top = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double v : z) sum += std::exp(v - top);
  std::vector<double> out;
  for (double v : z) out.push_back(v - top - std::log(sum));
  return out;
}

double kl(const std::vector<double>& teacher, const std::vector<double>& student) {
  const auto t = log_softmax(teacher), s = log_softmax(student);
  double sum = 0;
  for (std::size_t i = 0; i < t.size(); ++i) sum += std::exp(t[i]) * (t[i] - s[i]);
  return sum;
}

std::vector<double> row(const Matrix& x, std::int64_t i) { return {x.values.begin() + i * x.columns, x.values.begin() + (i + 1) * x.columns}; }

double slope(double& x, const std::function<double()>& loss) {
  const double at = x, step = 1e-5;  // balances the step's square against rounding of 1e-16 over the step
  x = at + step;
  const double up = loss();
  x = at - step;
  const double down = loss();
  x = at;
  return (up - down) / (2 * step);
}

}  // namespace lquant::oracle::head_loss
