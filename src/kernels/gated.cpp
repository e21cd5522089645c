// Gated activations on MLX's ops, in f32 with one rounding at the end, and the checks that every device shares.
#include "kernels/gated.h"

#include <mlx/mlx.h>

#include <stdexcept>
#include <string>

#include "kernels/activation_paths.h"
#include "kernels/elementwise_cpu.h"
#include "kernels/gated_cuda.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

mx::array gated_on_mlx(const mx::array& gate, const mx::array& up, Activation activation) {
  return mx::astype(mx::multiply(activate_mlx(mx::astype(gate, mx::float32), activation), mx::astype(up, mx::float32)), gate.dtype());
}

mx::array clamped_on_mlx(const mx::array& gate, const mx::array& up, const ClampedGate& clamp) {
  const mx::array limit(clamp.limit), least(-clamp.limit);
  const auto g = mx::astype(gate, mx::float32), u = mx::astype(up, mx::float32);
  const auto a = clamp.limits_activated ? mx::minimum(swish_mlx(g, clamp.alpha), limit) : swish_mlx(mx::minimum(g, limit), clamp.alpha);
  const auto shifted = mx::add(mx::maximum(mx::minimum(u, limit), least), mx::array(clamp.shift));
  return mx::astype(mx::multiply(a, shifted), gate.dtype());
}

void check_pair(const char* op, const mx::array& gate, const mx::array& up) {
  if (gate.shape() != up.shape() || gate.dtype() != up.dtype() || !mx::issubdtype(gate.dtype(), mx::floating))
    throw std::invalid_argument(std::string("[kernels] ") + op + ": gate and up must have one shape and one float dtype");
}

}  // namespace

mx::array gated(const mx::array& gate, const mx::array& up, Activation activation) {
  check_pair("gated", gate, up);
  if constexpr (cpu::built) {
    if (cpu::serves(gate.dtype())) return cpu::gated(gate, up, activation);
  }
  if (cuda_kernels() && gate.ndim() > 0) return cuda::gated(gate, up, activation);
  return gated_on_mlx(gate, up, activation);
}

mx::array clamped_gated(const mx::array& gate, const mx::array& up, const ClampedGate& clamp) {
  check_pair("clamped_gated", gate, up);
  if (!(clamp.limit > 0)) throw std::invalid_argument("[kernels] clamped_gated: the limit must be above 0");
  if constexpr (cpu::built) {
    if (cpu::serves(gate.dtype())) return cpu::clamped_gated(gate, up, clamp);
  }
  return clamped_on_mlx(gate, up, clamp);
}

mx::array situ_gated(const mx::array& gate, const mx::array& up, const Situ& situ) {
  check_pair("situ_gated", gate, up);
  if (situ.beta == 0) throw std::invalid_argument("[kernels] situ_gated: beta must not be 0");
  const auto bent = [](const mx::array& x, float size) { return mx::multiply(mx::array(size), mx::tanh(mx::divide(x, mx::array(size)))); };
  const auto g = mx::astype(gate, mx::float32), u = mx::astype(up, mx::float32);
  const auto a = mx::multiply(bent(g, situ.beta), mx::sigmoid(g));
  return mx::astype(mx::multiply(a, situ.linear > 0 ? bent(u, situ.linear) : u), gate.dtype());
}

mx::array gated_fused(const mx::array& gate_up, Activation activation) {
  if (gate_up.ndim() < 1 || gate_up.shape(-1) % 2 || !mx::issubdtype(gate_up.dtype(), mx::floating)) {
    throw std::invalid_argument("[kernels] gated_fused: gate_up must be float [..., 2·I]");
  }
  if constexpr (cpu::built) {
    if (cpu::serves(gate_up.dtype())) return cpu::gated_fused(gate_up, activation);
  }
  const auto halves = mx::split(gate_up, 2, -1);
  if (cuda_kernels()) return cuda::gated(halves[0], halves[1], activation);
  return gated_on_mlx(halves[0], halves[1], activation);
}

}  // namespace lquant::kernels
