#include "oracle/kernels_gated.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lquant::oracle {

using kernels::Activation;

namespace {

constexpr double kQuick = 1.702;

}  // namespace

double activate(double g, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return g / (1 + std::exp(-g));
    case Activation::gelu:
      return g * std::erfc(-g / std::numbers::sqrt2) / 2;
    case Activation::gelu_tanh:
      // (1 + tanh u) / 2 = σ(2u), which keeps its digits far to the left
      return g / (1 + std::exp(-2 * std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g)));
    case Activation::gelu_quick:
      return g / (1 + std::exp(-kQuick * g));
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-g));
    case Activation::relu:
      return std::max(g, 0.0);
    case Activation::relu2:
      return std::max(g, 0.0) * std::max(g, 0.0);
  }
  return 0;
}

double swish(double g, double factor) { return g / (1 + std::exp(-factor * g)); }

ActivationError swish_error(double g, double factor) {
  // σ(z) with z off by 2 units relative (the factor and the product), so σ by 2·|z|·(1 − σ) more.
  const double a = std::abs(g), z = std::abs(factor * g), s = 1 / (1 + std::exp(-factor * g)), tail = z * (1 - s) + 1;
  return {8 * a * s * tail, 16 * (s + z * s) * tail, 0};
}

double xielu(double x, const Xielu& f) { return (x > 0 ? f.p * x * x : f.n * (std::expm1(std::min(x, f.eps)) - x)) + f.beta * x; }

XieluGradient xielu_gradient(double x, const Xielu& f) {
  if (x > 0) return {2 * f.p * x + f.beta, x * x, 0};
  return {f.n * (x < f.eps ? std::expm1(x) : -1) + f.beta, 0, std::expm1(std::min(x, f.eps)) - x};
}

ActivationError xielu_error(double x, const Xielu& f) {
  const double a = std::abs(x), line = 3 * std::abs(f.beta * x);
  if (x > 0) return {10 * std::abs(f.p) * a * a + line, 10 * std::abs(f.p) * a + 3 * std::abs(f.beta), 0};
  return {std::abs(f.n) * (16 * std::abs(std::expm1(x)) + 10 * a) + line, 20 * std::abs(f.n) + 3 * std::abs(f.beta), 0};
}

ActivationError activation_error(double g, Activation activation) {
  const double a = std::abs(g);
  switch (activation) {
    case Activation::silu: {
      // σ: exp 2 units, sum and quotient 2, relative; the product 1. Slope s + v(1 − s): (1 − s) is off by 5 units absolute.
      const double s = 1 / (1 + std::exp(-g));
      return {8 * a * s, 16 * (s + a * s), 0};
    }
    case Activation::gelu: {
      // Both φ (exponent g²/2 after two roundings: g² units) and the handbook's formula (1.5e-7 in erf, half of it in Φ).
      const double density = std::exp(-g * g / 2) / std::sqrt(2 * std::numbers::pi);
      return {16 * a, 16 * (1 + a * density * (1 + g * g)), 0.75e-7};
    }
    case Activation::gelu_tanh: {
      // σ(z) with z off by 4 units relative, so σ by 4·|z|·(1 − σ) more; the inner slope multiplies v(1 − s).
      const double c = 2 * std::sqrt(2 / std::numbers::pi), z = c * (g + 0.044715 * g * g * g), s = 1 / (1 + std::exp(-z));
      const double inner = c * (1 + 3 * 0.044715 * g * g), tail = (1 + std::abs(z)) * (1 - s) + 1;
      return {8 * a * s * tail, 16 * (s + a * s * inner) * tail, 0};
    }
    case Activation::gelu_quick:
      return swish_error(g, kQuick);
    case Activation::sigmoid: {
      // σ as above; 1 − σ is off by 5 units of 1, which σ multiplies.
      const double s = 1 / (1 + std::exp(-g));
      return {8 * s, 16 * s, 0};
    }
    case Activation::relu:
      return {0, 0, 0};
    case Activation::relu2:
      return {a * a, a, 0};
  }
  return {};
}

}  // namespace lquant::oracle
