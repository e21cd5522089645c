// A product of a matrix with itself is symmetric: only panels on and above the diagonal are computed, the rest is mirrored.
#include "kernels/moments_cpu.h"

#include <algorithm>

#include "kernels/gemm.h"
#include "kernels/parallel.h"
#include "kernels/primitive.h"

namespace lquant::kernels::cpu {
namespace {

// Narrower panels save more (p of them compute (p + 1) / 2p of the whole) and run slower; below 192 rows nothing is gained.
constexpr std::int64_t kPanel = 192;

std::int64_t rows_of(const mx::array& x) { return x.shape(-1) == 0 ? 0 : static_cast<std::int64_t>(x.size()) / x.shape(-1); }

void product(const mx::array& x, std::int64_t first, std::int64_t count, const mx::array& y, std::int64_t from, mx::array& out) {
  const std::int64_t k = x.shape(-1), l = y.shape(-1);
  const auto at = [](const mx::array& a, std::int64_t column) { return a.data<char>() + column * static_cast<std::int64_t>(a.itemsize()); };
  gemm(count, l - from, rows_of(x), 1, {at(x, first), x.dtype(), k, true}, {at(y, from), y.dtype(), l}, 0, out.data<float>() + first * l + from, mx::float32, l);
}

void mirror(float* m, std::int64_t k) {
  constexpr std::int64_t kTile = 32;  // a tile and its mirror image stay in the first cache
  parallel_for((k + kTile - 1) / kTile, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i0 = begin * kTile; i0 < std::min(end * kTile, k); i0 += kTile)
      for (std::int64_t j0 = 0; j0 <= i0; j0 += kTile)
        for (std::int64_t i = i0; i < std::min(i0 + kTile, k); ++i)
          for (std::int64_t j = j0; j < std::min(j0 + kTile, i); ++j) m[i * k + j] = m[j * k + i];
  });
}

}  // namespace

mx::array cross_moment(const mx::array& x, const mx::array& y) {
  return make_op("cross_moment", {x, y}, {{{x.shape(-1), y.shape(-1)}, mx::float32}}, [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    product(in[0], 0, in[0].shape(-1), in[1], 0, out[0]);
  })[0];
}

mx::array gram(const mx::array& x) {
  return make_op("gram", {x}, {{{x.shape(-1), x.shape(-1)}, mx::float32}}, [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const std::int64_t k = in[0].shape(-1);
    for (std::int64_t first = 0; first < k; first += kPanel) product(in[0], first, std::min(kPanel, k - first), in[0], first, out[0]);
    mirror(out[0].data<float>(), k);
  })[0];
}

}  // namespace lquant::kernels::cpu
