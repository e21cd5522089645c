#include "kernels/moments.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>

#include "kernels/elementwise_cpu.h"
#include "kernels/moments_cpu.h"

namespace lquant::kernels {

mx::array cross_moment(const mx::array& x, const mx::array& y) {
  if (x.ndim() < 1 || x.dtype() != y.dtype() || !mx::issubdtype(x.dtype(), mx::floating) || x.ndim() != y.ndim() ||
      !std::equal(x.shape().begin(), x.shape().end() - 1, y.shape().begin()))
    throw std::invalid_argument("[kernels] cross_moment: both need the same leading shape and float dtype");
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::cross_moment(x, y);
  }
  const auto rows = [](const mx::array& a) { return mx::astype(mx::reshape(a, {-1, a.shape(-1)}), mx::float32); };
  return mx::matmul(mx::transpose(rows(x)), rows(y));
}

mx::array shift_moment(const mx::array& reference, const mx::array& x) {
  if (reference.shape() != x.shape() || reference.dtype() != x.dtype() || x.ndim() < 1)
    throw std::invalid_argument("[kernels] shift_moment: both need one shape and dtype");
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::shift_moment(reference, x);
  }
  return cross_moment(mx::subtract(reference, x), x);
}

mx::array gram(const mx::array& x) {
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype()) && x.ndim() > 0) return cpu::gram(x);
  }
  const auto moment = cross_moment(x, x);
  // Two products of one sum may round apart: the upper triangle speaks for both.
  return mx::add(mx::triu(moment), mx::transpose(mx::triu(moment, 1)));
}

}  // namespace lquant::kernels
