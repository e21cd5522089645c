// Gated activations on MLX's ops, in f32 with one rounding at the end, and the checks that every device shares.
#include "kernels/gated.h"

#include <mlx/mlx.h>

#include <cmath>
#include <numbers>
#include <stdexcept>

#include "kernels/elementwise_cpu.h"

namespace lquant::kernels {
namespace {

mx::array activate(const mx::array& g, Activation activation) {
  const auto number = [](double value) { return mx::array(static_cast<float>(value)); };
  switch (activation) {
    case Activation::silu:
      return mx::multiply(g, mx::sigmoid(g));
    case Activation::gelu:
      return mx::multiply(mx::multiply(g, number(0.5)), mx::add(number(1), mx::erf(mx::multiply(g, number(std::numbers::sqrt2 / 2)))));
    case Activation::gelu_tanh: {
      const auto cubic = mx::add(g, mx::multiply(number(0.044715), mx::multiply(g, mx::square(g))));
      return mx::multiply(g, mx::sigmoid(mx::multiply(number(2 * std::sqrt(2 / std::numbers::pi)), cubic)));  // (1 + tanh u) / 2 = σ(2u)
    }
    case Activation::relu:
      return mx::maximum(g, number(0));
    case Activation::relu2:
      return mx::square(mx::maximum(g, number(0)));
  }
  throw std::invalid_argument("[kernels] gated: no such activation");
}

mx::array gated_on_mlx(const mx::array& gate, const mx::array& up, Activation activation) {
  return mx::astype(mx::multiply(activate(mx::astype(gate, mx::float32), activation), mx::astype(up, mx::float32)), gate.dtype());
}

}  // namespace

mx::array gated(const mx::array& gate, const mx::array& up, Activation activation) {
  if (gate.shape() != up.shape() || gate.dtype() != up.dtype() || !mx::issubdtype(gate.dtype(), mx::floating)) {
    throw std::invalid_argument("[kernels] gated: gate and up must have one shape and one float dtype");
  }
  if constexpr (cpu::built) {
    if (cpu::serves(gate.dtype())) return cpu::gated(gate, up, activation);
  }
  return gated_on_mlx(gate, up, activation);
}

mx::array gated_fused(const mx::array& gate_up, Activation activation) {
  if (gate_up.ndim() < 1 || gate_up.shape(-1) % 2 || !mx::issubdtype(gate_up.dtype(), mx::floating)) {
    throw std::invalid_argument("[kernels] gated_fused: gate_up must be float [..., 2·I]");
  }
  if constexpr (cpu::built) {
    if (cpu::serves(gate_up.dtype())) return cpu::gated_fused(gate_up, activation);
  }
  const auto halves = mx::split(gate_up, 2, -1);
  return gated_on_mlx(halves[0], halves[1], activation);
}

}  // namespace lquant::kernels
