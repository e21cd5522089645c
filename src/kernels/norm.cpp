// Norms on MLX's own ops, for the devices that have fast forms of them, or on CUDA's, behind the checks that every device shares. MLX's fast
// rms_norm is differentiable and rounds as the header says, so nothing more is needed here than the composition.
#include "kernels/norm.h"

#include <mlx/mlx.h>

#include <stdexcept>
#include <string>

#include "kernels/elementwise_cpu.h"
#include "kernels/norm_rope_cuda.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

void check(const char* op, const mx::array& x, const std::optional<mx::array>& weight) {
  if (x.ndim() < 1 || !mx::issubdtype(x.dtype(), mx::floating))
    throw std::invalid_argument(std::string("[kernels] ") + op + ": x must be float [..., K]");
  if (weight && (weight->ndim() != 1 || weight->shape(0) != x.shape(-1) || !mx::issubdtype(weight->dtype(), mx::floating))) {
    throw std::invalid_argument(std::string("[kernels] ") + op + ": weight must be float and as long as x's last axis");
  }
}

mx::array norm_elsewhere(const mx::array& x, const std::optional<mx::array>& weight, float eps, float weight_offset) {
  if (cuda_kernels() && x.size() > 0) return cuda::rms_norm(x, weight, eps, weight_offset);
  if (!weight) return mx::fast::rms_norm(x, std::nullopt, eps);
  const auto scale = weight_offset == 0 ? *weight : mx::add(*weight, mx::array(weight_offset, weight->dtype()));
  return mx::astype(mx::fast::rms_norm(x, scale, eps), x.dtype());
}

bool on_cpu(const mx::array& x, const std::optional<mx::array>& weight) {
  return cpu::serves(x.dtype()) && (!weight || cpu::serves(weight->dtype()));
}

}  // namespace

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps, float weight_offset) {
  check("rms_norm", x, weight);
  if constexpr (cpu::built) {
    if (on_cpu(x, weight)) return cpu::rms_norm(x, weight, eps, weight_offset);
  }
  return norm_elsewhere(x, weight, eps, weight_offset);
}

std::pair<mx::array, mx::array> residual_norm(const mx::array& x, const mx::array& weight, float eps, float weight_offset) {
  check("residual_norm", x, weight);
  if constexpr (cpu::built) {
    if (on_cpu(x, weight)) return cpu::residual_norm(x, weight, eps, weight_offset);
  }
  return {x, norm_elsewhere(x, weight, eps, weight_offset)};
}

mx::array add_norm(const mx::array& residual, const mx::array& y, const mx::array& weight, float eps, float weight_offset) {
  check("add_norm", y, weight);
  if (residual.shape() != y.shape() || residual.dtype() != y.dtype()) {
    throw std::invalid_argument("[kernels] add_norm: residual and y must have one shape and one dtype");
  }
  if constexpr (cpu::built) {
    if (on_cpu(y, weight)) return cpu::add_norm(residual, y, weight, eps, weight_offset);
  }
  return mx::add(residual, norm_elsewhere(y, weight, eps, weight_offset));
}

}  // namespace lquant::kernels
