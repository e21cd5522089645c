// A product of a matrix with itself is symmetric: only panels on and above the diagonal are computed, the rest is mirrored.
#include "kernels/moments_cpu.h"

#include <algorithm>
#include <memory>

#include "kernels/gemm.h"
#include "kernels/parallel.h"
#include "kernels/primitive.h"
#include "kernels/storage.h"

namespace lquant::kernels::cpu {
namespace {

// Narrower panels save more (p of them compute (p + 1) / 2p of the whole), but each brings the second matrix into oneDNN's layout anew, at the price
// of some 70 rows of product.
constexpr std::int64_t kPanel = 384;

std::int64_t rows_of(const mx::array& x) { return x.shape(-1) == 0 ? 0 : static_cast<std::int64_t>(x.size()) / x.shape(-1); }

/// Rows first … first + count of xᵀy, from column `from` on. x lies in `values`, as x.dtype().
void product(const char* values, const mx::array& x, std::int64_t first, std::int64_t count, const mx::array& y, std::int64_t from, mx::array& out) {
  const std::int64_t k = x.shape(-1), l = y.shape(-1);
  const auto size = static_cast<std::int64_t>(x.itemsize());
  gemm(count, l - from, rows_of(x), 1, {values + first * size, x.dtype(), k, true}, {y.data<char>() + from * size, y.dtype(), l}, 0,
       out.data<float>() + first * l + from, mx::float32, l);
}

template <class Storage>
LQUANT_INLINE void subtract(const mx::array& a, const mx::array& b, char* out, std::int64_t begin, std::int64_t end) {
  const auto* x = a.data<typename Storage::Bits>();
  const auto* y = b.data<typename Storage::Bits>();
  auto* d = reinterpret_cast<typename Storage::Bits*>(out);
  for (auto i = begin; i < end; ++i) d[i] = Storage::store(Storage::load(x[i]) - Storage::load(y[i]));
}

LQUANT_MULTIVERSION void subtract_range(const mx::array& a, const mx::array& b, char* out, std::int64_t begin, std::int64_t end) {
  with_storage(a.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA { subtract<decltype(s)>(a, b, out, begin, end); });
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
  return make_op("cross_moment", {x, y}, {{{x.shape(-1), y.shape(-1)}, mx::float32}},
                 [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                   product(in[0].data<char>(), in[0], 0, in[0].shape(-1), in[1], 0, out[0]);
                 })[0];
}

mx::array shift_moment(const mx::array& reference, const mx::array& x) {
  return make_op("shift_moment", {reference, x}, {{{x.shape(-1), x.shape(-1)}, mx::float32}},
                 [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                   const auto difference = std::make_unique_for_overwrite<char[]>(in[1].nbytes());
                   constexpr std::int64_t kGrain = 1 << 14;  // as many elements take microseconds, as starting a thread team does
                   parallel_for(static_cast<std::int64_t>(in[1].size()), kGrain,
                                [&](std::int64_t begin, std::int64_t end) { subtract_range(in[0], in[1], difference.get(), begin, end); });
                   product(difference.get(), in[1], 0, in[1].shape(-1), in[1], 0, out[0]);
                 })[0];
}

mx::array gram(const mx::array& x) {
  return make_op("gram", {x}, {{{x.shape(-1), x.shape(-1)}, mx::float32}}, [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const std::int64_t k = in[0].shape(-1);
    for (std::int64_t first = 0; first < k; first += kPanel)
      product(in[0].data<char>(), in[0], first, std::min(kPanel, k - first), in[0], first, out[0]);
    mirror(out[0].data<float>(), k);
  })[0];
}

}  // namespace lquant::kernels::cpu
