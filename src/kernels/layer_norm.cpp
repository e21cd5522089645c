// Layer norm on MLX's own op, which is differentiable and rounds as the header says, behind the checks that every device shares.
#include "kernels/layer_norm.h"

#include <mlx/mlx.h>

#include <stdexcept>
#include <string>

#include "kernels/elementwise_cpu.h"

namespace lquant::kernels {
namespace {

void check(const mx::array& x, const std::optional<mx::array>& parameter, const char* name) {
  if (!parameter) return;
  if (parameter->ndim() != 1 || parameter->shape(0) != x.shape(-1) || !mx::issubdtype(parameter->dtype(), mx::floating))
    throw std::invalid_argument(std::string("[kernels] layer_norm: ") + name + " must be float and as long as x's last axis");
}

bool on_cpu(const std::optional<mx::array>& parameter) { return !parameter || cpu::serves(parameter->dtype()); }

}  // namespace

mx::array layer_norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias, float eps,
                     float weight_offset) {
  if (x.ndim() < 1 || !mx::issubdtype(x.dtype(), mx::floating)) throw std::invalid_argument("[kernels] layer_norm: x must be float [..., K]");
  check(x, weight, "weight");
  check(x, bias, "bias");
  if (x.size() == 0) return x;
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype()) && on_cpu(weight) && on_cpu(bias)) return cpu::layer_norm(x, weight, bias, eps, weight_offset);
  }
  auto scale = weight;
  if (weight && weight_offset != 0) scale = mx::add(*weight, mx::array(weight_offset, weight->dtype()));
  return mx::astype(mx::fast::layer_norm(x, scale, bias, eps), x.dtype());
}

}  // namespace lquant::kernels
