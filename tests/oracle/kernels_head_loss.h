#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "oracle/kernels_linear.h"

// The losses over a vocabulary, straight from their definitions in double, and gradients by central differences.
namespace lquant::oracle::head_loss {

using linear::Matrix;

/// A model's end: logits = cap·tanh(multiplier·(hidden·headᵀ + bias) / cap) / temperature.
struct End {
  Matrix hidden, head;
  std::vector<double> bias;  ///< or empty
  double multiplier = 1, softcap = 0, temperature = 1;
};
Matrix logits(const End& end);
std::vector<double> log_softmax(const std::vector<double>& z);

/// KL(teacher ‖ student) of one token in nats, from logits.
double kl(const std::vector<double>& teacher, const std::vector<double>& student);
std::vector<double> row(const Matrix& x, std::int64_t i);

/// The derivative of `loss` by `x` (a value that loss reads), by central differences: for a smooth loss of size and curvature
/// near 1, off by some 1e-9.
double slope(double& x, const std::function<double()>& loss);

}  // namespace lquant::oracle::head_loss
