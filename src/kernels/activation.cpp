// Activations on MLX's ops, in f32 with one rounding at the end, and the checks that every device shares. xIELU's two factors are made here for
// all devices: they are single numbers, and MLX differentiates their softplus.
#include "kernels/activation.h"

#include <mlx/mlx.h>

#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>

#include "kernels/activation_paths.h"
#include "kernels/elementwise_cpu.h"
#include "kernels/gated_cuda.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

mx::array number(double value) { return mx::array(static_cast<float>(value)); }

mx::array scalar(const mx::array& parameter, const char* name) {
  if (parameter.size() != 1 || !mx::issubdtype(parameter.dtype(), mx::floating))
    throw std::invalid_argument(std::string("[kernels] xielu: ") + name + " must be one float number");
  return mx::reshape(parameter, {});
}

/// A f32 number rounded to `dtype`, but still f32, as its gradient stays. (The difference is exact, and so is the sum, which `dtype` can hold.)
mx::array rounded_to(const mx::array& x, mx::Dtype dtype) {
  return mx::add(x, mx::stop_gradient(mx::subtract(mx::astype(mx::astype(x, dtype), mx::float32), x)));
}

mx::array softplus(const mx::array& x) { return rounded_to(mx::logaddexp(mx::astype(x, mx::float32), number(0)), x.dtype()); }

mx::array xielu_mlx(const mx::array& x, const mx::array& p, const mx::array& n, const mx::array& beta, const mx::array& eps) {
  const auto v = mx::astype(x, mx::float32), line = mx::multiply(beta, v);
  const auto right = mx::multiply(p, mx::square(v)), left = mx::multiply(n, mx::subtract(mx::expm1(mx::minimum(v, eps)), v));
  return mx::astype(mx::add(mx::where(mx::greater(v, number(0)), right, left), line), x.dtype());
}

}  // namespace

mx::array swish_mlx(const mx::array& g, float factor) { return mx::multiply(g, mx::sigmoid(factor == 1 ? g : mx::multiply(number(factor), g))); }

mx::array activate_mlx(const mx::array& g, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return swish_mlx(g, 1);
    case Activation::gelu:
      return mx::multiply(mx::multiply(g, number(0.5)), mx::add(number(1), mx::erf(mx::multiply(g, number(std::numbers::sqrt2 / 2)))));
    case Activation::gelu_tanh: {
      const auto cubic = mx::add(g, mx::multiply(number(0.044715), mx::multiply(g, mx::square(g))));
      return mx::multiply(g, mx::sigmoid(mx::multiply(number(2 * std::sqrt(2 / std::numbers::pi)), cubic)));  // (1 + tanh u) / 2 = σ(2u)
    }
    case Activation::gelu_quick:
      return swish_mlx(g, 1.702f);
    case Activation::relu:
      return mx::maximum(g, number(0));
    case Activation::relu2:
      return mx::square(mx::maximum(g, number(0)));
    case Activation::sigmoid:
      return mx::sigmoid(g);
  }
  throw std::invalid_argument("[kernels] there is no such activation");
}

mx::array activate(const mx::array& x, Activation activation) {
  if (!mx::issubdtype(x.dtype(), mx::floating)) throw std::invalid_argument("[kernels] activate: x must be float");
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::activate(x, activation);
  }
  if (cuda_kernels() && x.ndim() > 0) return cuda::activate(x, activation);
  return mx::astype(activate_mlx(mx::astype(x, mx::float32), activation), x.dtype());
}

mx::array xielu(const mx::array& x, const XieluParameters& parameters) {
  if (!mx::issubdtype(x.dtype(), mx::floating)) throw std::invalid_argument("[kernels] xielu: x must be float");
  const auto alpha_n = scalar(parameters.alpha_n, "alpha_n");
  const auto beta = mx::stop_gradient(mx::astype(scalar(parameters.beta, "beta"), mx::float32));
  const auto eps = mx::stop_gradient(mx::astype(scalar(parameters.eps, "eps"), mx::float32));
  const auto p = softplus(scalar(parameters.alpha_p, "alpha_p")), n = rounded_to(mx::add(beta, softplus(alpha_n)), alpha_n.dtype());
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::xielu(x, p, n, beta, eps);
  }
  return xielu_mlx(x, p, n, beta, eps);
}

}  // namespace lquant::kernels
