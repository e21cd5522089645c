// Rows are copied by all cores. The gradient is summed without locks: each core owns a range of the table's rows, reads all ids
// and adds those cotangents that fall into its range, so every row is summed in the order of the ids whatever the number of cores.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/embedding_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

template <class T>
void add_row(const T* row, float* sum, std::int64_t width) {
  for_lanes(width, [&](std::int64_t i, auto part) LQUANT_STEP { store(hn::Add(load(row + i, part), load(sum + i, part)), sum + i, part); });
}

template <class T>
void multiply(const T* x, float factor, T* out, std::int64_t count) {
  for_lanes(count, [&](std::int64_t i, auto part) LQUANT_STEP { store(hn::Mul(load(x + i, part), set(factor)), out + i, part); });
}

void scatter_rows(const cpu::ScatterArgs& a) {
  // A core's share of the table is zeroed and summed; below a grain of both together one core does it.
  parallel_for(a.table_rows, cpu::grain_rows(a.width), [&](std::int64_t begin, std::int64_t end) {
    std::memset(a.sums + begin * a.width, 0, (end - begin) * a.width * sizeof(float));
    for (std::int64_t i = 0; i < a.count; ++i) {
      if (a.ids[i] < begin || a.ids[i] >= end) continue;
      float* sum = a.sums + a.ids[i] * a.width;
      a.bf16 ? add_row(static_cast<const Bf16*>(a.rows) + i * a.width, sum, a.width)
             : add_row(static_cast<const float*>(a.rows) + i * a.width, sum, a.width);
    }
  });
}

void times(const void* x, float factor, void* out, std::int64_t count, bool bf16) {
  parallel_for(count, cpu::kGrain, [&](std::int64_t begin, std::int64_t end) {
    bf16 ? multiply(static_cast<const Bf16*>(x) + begin, factor, static_cast<Bf16*>(out) + begin, end - begin)
         : multiply(static_cast<const float*>(x) + begin, factor, static_cast<float*>(out) + begin, end - begin);
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(scatter_rows);
HWY_EXPORT(times);

void copy_rows(const std::vector<mx::array>& in, std::vector<mx::array>& out) {
  const auto* ids = in[0].data<std::int32_t>();
  const std::int64_t count = in[0].size(), rows = in[1].shape(0), bytes = in[1].shape(1) * in[1].itemsize();
  for (std::int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= rows) {
      throw std::out_of_range("[kernels] embedding: id " + std::to_string(ids[i]) + " lies outside the table of " + std::to_string(rows) + " rows");
    }
  }
  const char* table = in[1].data<char>();
  char* to = out[0].data<char>();
  parallel_for(count, cpu::grain_rows(in[1].shape(1)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) std::memcpy(to + i * bytes, table + ids[i] * bytes, bytes);
  });
}

Output gathered(const mx::array& ids, const mx::array& table) {
  auto shape = ids.shape();
  shape.push_back(table.shape(1));
  return {shape, table.dtype()};
}

}  // namespace

mx::array cpu::gather_words(const mx::array& ids, const mx::array& table) {
  return make_op("gather_words", {ids, table}, {gathered(ids, table)}, copy_rows)[0];
}

mx::array cpu::embedding(const mx::array& ids, const mx::array& table) {
  auto vjp = [](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                const std::vector<mx::array>&) {
    if (argnums != std::vector<int>{1}) throw std::invalid_argument("[kernels] embedding is differentiable for the table alone");
    const auto shape = in[1].shape();
    const auto& rows = serves(cotangents[0].dtype()) ? cotangents[0] : mx::astype(cotangents[0], mx::float32);
    return make_op("embedding_vjp", {in[0], rows}, {{shape, mx::float32}}, [shape](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
      HWY_DYNAMIC_DISPATCH(scatter_rows)
      ({in[0].data<std::int32_t>(), in[1].data<char>(), out[0].data<float>(), static_cast<std::int64_t>(in[0].size()), shape[0], shape[1],
        in[1].dtype() == mx::bfloat16});
    });
  };
  return make_op("embedding", {ids, table}, {gathered(ids, table)}, copy_rows, vjp)[0];
}

mx::array cpu::times(const mx::array& x, float factor) {
  auto compute = [factor](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    HWY_DYNAMIC_DISPATCH(times)(in[0].data<char>(), factor, out[0].data<char>(), in[0].size(), in[0].dtype() == mx::bfloat16);
  };
  auto vjp = [factor](const std::vector<mx::array>&, const std::vector<mx::array>& cotangents, const std::vector<int>&,
                      const std::vector<mx::array>&) { return std::vector<mx::array>{times(cotangents[0], factor)}; };
  return make_op("times", {x}, {{x.shape(), x.dtype()}}, compute, vjp)[0];
}

}  // namespace lquant::kernels
#endif
