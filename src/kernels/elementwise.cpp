#include "kernels/elementwise.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise_cpu.h"

namespace lquant::kernels {

mx::array add(const mx::array& a, const mx::array& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) throw std::invalid_argument("[kernels] add: both must have one shape and one dtype");
  if constexpr (cpu::built) {
    if (cpu::serves(a.dtype())) return cpu::add(a, b);
  }
  return mx::add(a, b);
}

mx::array add_squares(const mx::array& sum, const mx::array& x) {
  if (sum.shape() != x.shape() || sum.dtype() != mx::float32 || !mx::issubdtype(x.dtype(), mx::floating))
    throw std::invalid_argument("[kernels] add_squares: both must have one shape, the sum f32 and x a float dtype");
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::add_squares(mx::stop_gradient(sum), mx::stop_gradient(x));
  }
  return mx::stop_gradient(mx::add(sum, mx::square(mx::astype(x, mx::float32))));
}

mx::array second_moment(const mx::array& x) {
  if (x.ndim() < 1 || !mx::issubdtype(x.dtype(), mx::floating)) throw std::invalid_argument("[kernels] second_moment: x must be float [..., K]");
  const auto fixed = mx::stop_gradient(x);
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::second_moment(fixed);
  }
  const int width = x.shape(-1), rows = width ? static_cast<int>(x.size() / width) : 0;
  return mx::sum(mx::square(mx::astype(mx::reshape(fixed, {rows, width}), mx::float32)), 0);
}

}  // namespace lquant::kernels
