#include "oracle/kernels_layer_norm.h"

#include <cmath>

namespace lquant::oracle {
namespace {

struct Row {
  double mean = 0, inverse = 0, size = 0;  ///< size: mean of |x|
};

Row statistics(const double* x, std::size_t width, double eps) {
  Row row;
  double variance = 0;
  for (std::size_t i = 0; i < width; ++i) {
    row.mean += x[i] / width;
    row.size += std::abs(x[i]) / width;
  }
  for (std::size_t i = 0; i < width; ++i) variance += (x[i] - row.mean) * (x[i] - row.mean) / width;
  row.inverse = 1 / std::sqrt(variance + eps);
  return row;
}

}  // namespace

std::vector<double> layer_norm(const std::vector<double>& x, const std::vector<double>& weight, const std::vector<double>& bias, double eps) {
  const std::size_t width = weight.size();
  std::vector<double> y(x.size());
  for (std::size_t start = 0; start < x.size(); start += width) {
    const Row row = statistics(&x[start], width, eps);
    for (std::size_t i = 0; i < width; ++i) y[start + i] = (x[start + i] - row.mean) * row.inverse * weight[i] + bias[i];
  }
  return y;
}

LayerNormTerms layer_norm_terms(const std::vector<double>& x, const std::vector<double>& weight, const std::vector<double>& cotangent, double eps) {
  const std::size_t width = weight.size();
  const std::vector<double> rows(x.size()), columns(width);
  LayerNormTerms terms{rows, rows, columns, columns};
  for (std::size_t start = 0; start < x.size(); start += width) {
    const Row row = statistics(&x[start], width, eps);
    double sum = 0, products = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const double normed = (std::abs(x[start + i] - row.mean) + row.size) * row.inverse, h = std::abs(cotangent[start + i] * weight[i]);
      terms.normed[start + i] = normed;
      terms.dweight[i] += std::abs(cotangent[start + i]) * normed;
      terms.dbias[i] += std::abs(cotangent[start + i]);
      sum += h / width;
      products += h * normed / width;
    }
    for (std::size_t i = 0; i < width; ++i) {
      terms.dx[start + i] = row.inverse * (std::abs(cotangent[start + i] * weight[i]) + sum + terms.normed[start + i] * products);
    }
  }
  return terms;
}

}  // namespace lquant::oracle
