// Rotary embedding on MLX's ops. Its fast kernel serves the plain case; positions that differ from text to text, and a magnitude, are
// composed: cos and sin tables in f32, two products and a sum a half.
#include "kernels/rope.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/elementwise_cpu.h"
#include "kernels/norm_rope_cuda.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

void check(const mx::array& x, const mx::array& inv_freq, const std::optional<mx::array>& positions) {
  if (x.ndim() != 4 || !mx::issubdtype(x.dtype(), mx::floating)) throw std::invalid_argument("[kernels] rope: x must be float [B, T, H, D]");
  if (inv_freq.ndim() != 1 || inv_freq.dtype() != mx::float32) throw std::invalid_argument("[kernels] rope: inv_freq must be f32 [F]");
  if (2 * inv_freq.shape(0) > x.shape(3)) throw std::invalid_argument("[kernels] rope: x has fewer than 2·F features");
  if (positions && (positions->dtype() != mx::int32 || positions->shape() != mx::Shape{x.shape(0), x.shape(1)})) {
    throw std::invalid_argument("[kernels] rope: positions must be int32 [B, T]");
  }
}

mx::array fast_rope(const mx::array& x, const mx::array& inv_freq, int offset, bool interleaved) {
  const auto heads_first = mx::transpose(x, {0, 2, 1, 3});
  const auto turned = mx::fast::rope(heads_first, 2 * inv_freq.shape(0), interleaved, std::nullopt, 1.0f, offset, mx::reciprocal(inv_freq));
  return mx::transpose(turned, {0, 2, 1, 3});
}

mx::array composed_rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude, bool interleaved,
                        const std::optional<mx::array>& positions) {
  const int length = x.shape(1), pairs = inv_freq.shape(0), width = x.shape(3);
  const auto at = positions ? mx::astype(*positions, mx::float32) : mx::reshape(mx::arange(offset, offset + length, mx::float32), {1, length});
  const auto angle = mx::multiply(mx::reshape(at, {at.shape(0), length, 1, 1}), inv_freq);
  const auto scale = mx::array(magnitude), cos = mx::multiply(mx::cos(angle), scale), sin = mx::multiply(mx::sin(angle), scale);
  const auto turned = mx::astype(mx::slice(x, {0, 0, 0, 0}, {x.shape(0), length, x.shape(2), 2 * pairs}), mx::float32);
  const mx::Shape pair_shape =
      interleaved ? mx::Shape{x.shape(0), length, x.shape(2), pairs, 2} : mx::Shape{x.shape(0), length, x.shape(2), 2, pairs};
  const int pair_axis = interleaved ? 4 : 3;
  const auto both = mx::split(mx::reshape(turned, pair_shape), 2, pair_axis);
  const auto a = mx::squeeze(both[0], pair_axis), b = mx::squeeze(both[1], pair_axis);
  const auto first = mx::subtract(mx::multiply(a, cos), mx::multiply(b, sin)), second = mx::add(mx::multiply(a, sin), mx::multiply(b, cos));
  auto result = mx::astype(mx::reshape(mx::stack({first, second}, pair_axis), turned.shape()), x.dtype());
  if (2 * pairs == width) return result;
  return mx::concatenate({result, mx::slice(x, {0, 0, 0, 2 * pairs}, x.shape())}, 3);
}

}  // namespace

mx::array rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude, bool interleaved,
               const std::optional<mx::array>& positions) {
  check(x, inv_freq, positions);
  if (inv_freq.size() == 0 || x.size() == 0) return x;
  if constexpr (cpu::built) {
    if (cpu::serves(x.dtype())) return cpu::rope(x, inv_freq, offset, magnitude, interleaved, positions);
  }
  if (cuda_kernels()) return cuda::rope(x, inv_freq, offset, magnitude, interleaved, positions);
  if (!positions && magnitude == 1) return fast_rope(x, inv_freq, offset, interleaved);
  return composed_rope(x, inv_freq, offset, magnitude, interleaved, positions);
}

}  // namespace lquant::kernels
