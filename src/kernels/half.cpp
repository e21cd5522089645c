#include "kernels/half.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

namespace lquant::kernels {

bool is_float(mx::Dtype dtype) { return dtype == mx::float32 || dtype == mx::bfloat16 || dtype == mx::float16; }

mx::array widened(const mx::array& x) {
  if (x.dtype() == mx::float32) return x;
  const auto forward = [](const std::vector<mx::array>& in) { return std::vector<mx::array>{mx::astype(in[0], mx::float32)}; };
  const auto backward = [](const std::vector<mx::array>&, const std::vector<mx::array>& cotangents, const std::vector<mx::array>&) {
    return std::vector<mx::array>{cotangents[0]};
  };
  return mx::custom_vjp(forward, backward)({x})[0];
}

float power_of_two_below(double x) {
  if (!(x > 0) || !std::isfinite(x)) return 1;
  return static_cast<float>(std::ldexp(1.0, std::clamp(std::ilogb(x), -126, 127)));
}

}  // namespace lquant::kernels
