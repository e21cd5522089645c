#include "kernels/precise_product.h"

#include <mlx/mlx.h>

namespace lquant::kernels {

SplitMatrix split(const mx::array& x) {
  const auto half = mx::array(0x1000u, mx::uint32), mask = mx::array(0xffffe000u, mx::uint32);
  const auto high = mx::view(mx::bitwise_and(mx::add(mx::view(x, mx::uint32), half), mask), mx::float32);
  return {high, mx::subtract(x, high)};
}

mx::array precise_product(const SplitMatrix& a, const SplitMatrix& b) {
  const auto small = mx::addmm(mx::matmul(a.low, b.high), a.high, b.low);
  return mx::addmm(small, a.high, b.high);
}

mx::array precise_product(const mx::array& a, const mx::array& b) { return precise_product(split(a), split(b)); }

}  // namespace lquant::kernels
