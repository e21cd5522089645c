// Sums of tensors, or of their squares, on all cores, and the second moment: blocks of rows summed in f32, the blocks' sums in f64.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

template <class T>
void add_slice(const T* a, const T* b, T* out, std::int64_t count) {
  for_lanes(count, [&](std::int64_t i, auto part) LQUANT_STEP { store(hn::Add(load(a + i, part), load(b + i, part)), out + i, part); });
}

void add_all(const void* a, const void* b, void* out, std::int64_t count, bool bf16) {
  parallel_for(count, cpu::kGrain, [&](std::int64_t begin, std::int64_t end) {
    bf16 ? add_slice(static_cast<const Bf16*>(a) + begin, static_cast<const Bf16*>(b) + begin, static_cast<Bf16*>(out) + begin, end - begin)
         : add_slice(static_cast<const float*>(a) + begin, static_cast<const float*>(b) + begin, static_cast<float*>(out) + begin, end - begin);
  });
}

template <class T>
void square_slice(const float* sum, const T* x, float* out, std::int64_t count) {
  for_lanes(count, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector v = load(x + i, part);
    store(hn::MulAdd(v, v, load(sum + i, part)), out + i, part);
  });
}

void add_all_squares(const void* sum, const void* x, void* out, std::int64_t count, bool bf16) {
  parallel_for(count, cpu::kGrain, [&](std::int64_t begin, std::int64_t end) {
    const auto* from = static_cast<const float*>(sum) + begin;
    auto* to = static_cast<float*>(out) + begin;
    bf16 ? square_slice(from, static_cast<const Bf16*>(x) + begin, to, end - begin)
         : square_slice(from, static_cast<const float*>(x) + begin, to, end - begin);
  });
}

/// sums [width] = Σ x² over the rows of one block. Columns outside: a vector of sums stays in its register.
template <class T>
void square_block(const T* x, std::int64_t rows, std::int64_t width, float* sums) {
  for_lanes(width, [&](std::int64_t i, auto part) LQUANT_STEP {
    Vector even = set(0), odd = set(0);  // two chains hide the latency of the fused product
    std::int64_t row = 0;
    for (; row + 2 <= rows; row += 2) {
      const Vector a = load(x + row * width + i, part), b = load(x + (row + 1) * width + i, part);
      even = hn::MulAdd(a, a, even);
      odd = hn::MulAdd(b, b, odd);
    }
    if (row < rows) {
      const Vector a = load(x + row * width + i, part);
      even = hn::MulAdd(a, a, even);
    }
    store(hn::Add(even, odd), sums + i, part);
  });
}

void square_blocks(const void* x, std::int64_t rows, std::int64_t width, float* sums, bool bf16) {
  parallel_for(cpu::row_blocks(rows), 1 + cpu::grain_rows(width) / cpu::kRowBlock, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t first = block * cpu::kRowBlock, count = std::min(cpu::kRowBlock, rows - first);
      bf16 ? square_block(static_cast<const Bf16*>(x) + first * width, count, width, sums + block * width)
           : square_block(static_cast<const float*>(x) + first * width, count, width, sums + block * width);
    }
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {
HWY_EXPORT(add_all);
HWY_EXPORT(add_all_squares);
HWY_EXPORT(square_blocks);
}  // namespace

mx::array cpu::add(const mx::array& a, const mx::array& b) {
  auto compute = [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    HWY_DYNAMIC_DISPATCH(add_all)
    (in[0].data<char>(), in[1].data<char>(), out[0].data<char>(), static_cast<std::int64_t>(in[0].size()), in[0].dtype() == mx::bfloat16);
  };
  auto vjp = [](const std::vector<mx::array>&, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                const std::vector<mx::array>&) { return std::vector<mx::array>(argnums.size(), cotangents[0]); };
  return make_op("add", {a, b}, {{a.shape(), a.dtype()}}, compute, vjp)[0];
}

mx::array cpu::add_squares(const mx::array& sum, const mx::array& x) {
  auto compute = [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    HWY_DYNAMIC_DISPATCH(add_all_squares)
    (in[0].data<char>(), in[1].data<char>(), out[0].data<char>(), static_cast<std::int64_t>(in[0].size()), in[1].dtype() == mx::bfloat16);
  };
  return make_op("add_squares", {sum, x}, {{sum.shape(), mx::float32}}, compute)[0];
}

mx::array cpu::second_moment(const mx::array& x) {
  auto compute = [](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const std::int64_t width = in[0].shape(-1), rows = width ? static_cast<std::int64_t>(in[0].size()) / width : 0, blocks = row_blocks(rows);
    std::vector<float> sums(blocks * width);
    HWY_DYNAMIC_DISPATCH(square_blocks)(in[0].data<char>(), rows, width, sums.data(), in[0].dtype() == mx::bfloat16);
    float* result = out[0].data<float>();
    parallel_for(width, 1 + kGrain / (blocks + 1), [&](std::int64_t begin, std::int64_t end) {
      std::vector<double> total(end - begin, 0.0);
      for (std::int64_t block = 0; block < blocks; ++block) {
        for (std::int64_t i = begin; i < end; ++i) total[i - begin] += sums[block * width + i];
      }
      std::copy(total.begin(), total.end(), result + begin);
    });
  };
  return make_op("second_moment", {x}, {{mx::Shape{x.shape(-1)}, mx::float32}}, compute)[0];
}

}  // namespace lquant::kernels
#endif
