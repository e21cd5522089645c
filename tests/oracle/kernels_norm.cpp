#include "oracle/kernels_norm.h"

#include <cmath>

namespace lquant::oracle {
namespace {

double inverse_rms(const double* row, std::size_t width, double eps) {
  double squares = 0;
  for (std::size_t i = 0; i < width; ++i) squares += row[i] * row[i];
  return 1 / std::sqrt(squares / width + eps);
}

}  // namespace

std::vector<double> rms_norm(const std::vector<double>& x, const std::vector<double>& weight, double eps) {
  const std::size_t width = weight.size();
  std::vector<double> y(x.size());
  for (std::size_t start = 0; start < x.size(); start += width) {
    const double r = inverse_rms(&x[start], width, eps);
    for (std::size_t i = 0; i < width; ++i) y[start + i] = x[start + i] * r * weight[i];
  }
  return y;
}

std::vector<double> rms_norm_gradient_terms(const std::vector<double>& x, const std::vector<double>& weight, const std::vector<double>& cotangent,
                                            double eps) {
  const std::size_t width = weight.size();
  std::vector<double> terms(x.size());
  for (std::size_t start = 0; start < x.size(); start += width) {
    const double r = inverse_rms(&x[start], width, eps);
    double products = 0;
    for (std::size_t i = 0; i < width; ++i) products += std::abs(cotangent[start + i] * weight[i] * x[start + i]) / width;
    for (std::size_t i = 0; i < width; ++i) {
      terms[start + i] = r * std::abs(cotangent[start + i] * weight[i]) + std::abs(x[start + i]) * r * r * r * products;
    }
  }
  return terms;
}

std::vector<double> rms_norm_weight_terms(const std::vector<double>& x, const std::vector<double>& cotangent, std::size_t width, double eps) {
  std::vector<double> terms(width, 0.0);
  for (std::size_t start = 0; start < x.size(); start += width) {
    const double r = inverse_rms(&x[start], width, eps);
    for (std::size_t i = 0; i < width; ++i) terms[i] += std::abs(cotangent[start + i] * x[start + i]) * r;
  }
  return terms;
}

}  // namespace lquant::oracle
