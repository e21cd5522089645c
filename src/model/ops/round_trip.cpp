// The steps are mlx_lm's one by one: a scale that is off by a unit moves every number of its block.
#include "model/ops/round_trip.h"

#include <mlx/mlx.h>

#include <functional>
#include <limits>

namespace lquant::model {
namespace {

using Rounding = std::function<mx::array(const mx::array& blocks, const mx::array& largest)>;

mx::array number(float value) { return mx::array(value); }

mx::array through(const mx::array& x, int size, const Rounding& rounding) {
  if (x.shape(-1) % size != 0) return x;
  const auto fixed = mx::stop_gradient(x);
  const auto blocks = mx::unflatten(mx::astype(fixed, mx::float32), -1, {x.shape(-1) / size, size});
  const auto rounded = mx::astype(mx::flatten(rounding(blocks, mx::max(mx::abs(blocks), -1, /*keepdims=*/true)), -2, -1), x.dtype());
  return mx::add(rounded, mx::subtract(x, fixed));  // what is added is 0
}

mx::array power_of_two(const mx::array& least) { return mx::power(number(2), mx::ceil(mx::log2(least))); }

mx::array e4m3(const mx::array& x) { return mx::from_fp8(mx::to_fp8(x), mx::float32); }

/// |x| ≤ 6 to the nearest of 0, ½, 1, 1½, 2, 3, 4, 6; of two equally near to the one whose last bit is 0.
mx::array e2m1(const mx::array& x) {
  const auto size = mx::abs(x);
  auto sum = mx::zeros_like(size);
  const auto add = [&](const mx::array& passed, float step) { sum = mx::add(sum, mx::multiply(mx::astype(passed, mx::float32), number(step))); };
  for (const auto& [from, step] : {std::pair{0.25f, 0.5f}, {1.25f, 0.5f}, {2.5f, 1.0f}, {5.0f, 2.0f}}) add(mx::greater(size, number(from)), step);
  for (const auto& [from, step] : {std::pair{0.75f, 0.5f}, {1.75f, 0.5f}, {3.5f, 1.0f}}) add(mx::greater_equal(size, number(from)), step);
  return mx::multiply(mx::sign(x), sum);
}

mx::array scaled_e2m1(const mx::array& blocks, const mx::array& scale) {
  return mx::multiply(e2m1(mx::clip(mx::divide(blocks, scale), number(-6), number(6))), scale);
}

}  // namespace

mx::array through_fp8(const mx::array& x) {
  return through(x, 32, [](const mx::array& blocks, const mx::array& largest) {
    const auto scale = power_of_two(mx::divide(mx::maximum(largest, number(1e-4f)), number(448)));
    return mx::multiply(e4m3(mx::clip(mx::divide(blocks, scale), number(-448), number(448))), scale);
  });
}

mx::array through_fp4(const mx::array& x) {
  return through(x, 32, [](const mx::array& blocks, const mx::array& largest) {
    return scaled_e2m1(blocks, power_of_two(mx::divide(mx::maximum(largest, number(6 * std::numeric_limits<float>::min())), number(6))));
  });
}

mx::array through_fp4_of_16(const mx::array& x) {
  return through(x, 16, [](const mx::array& blocks, const mx::array& largest) {
    constexpr float kLeast = 0x1p-9f;  // that e4m3 has
    return scaled_e2m1(blocks, e4m3(mx::divide(mx::maximum(largest, number(6 * kLeast)), number(6))));
  });
}

}  // namespace lquant::model
