// The plan of feedback_cpu.cpp: between blocks of columns matrix products, inside a block one kernel in which every row runs on its own.
#include "codec/feedback_gpu.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <string>

#include "codec/cuda_text.h"
#include "kernels/cuda_module.h"
#include "kernels/precise_product.h"
#include "kernels/primitive.h"

namespace lquant::codec::gpu {
namespace {

// As the CPU's; [128, 128] in f32 is also what three thread blocks at once have room for in shared memory.
constexpr int kBlock = 128;
// Sixteen rows: small matrices still reach many processors, and a block's rows are many beside the square matrix that it loads.
constexpr int kThreads = 128;
constexpr int kLanesPerRow = 8, kWidth = 256;  // as in feedback.cu

mx::array columns(const mx::array& x, int begin, int end) { return mx::slice(x, {0, begin}, {x.shape(0), end}); }
mx::array rows_of(const mx::array& x, int begin, int end) { return mx::slice(x, {begin, 0}, {end, x.shape(1)}); }

/// Calls a function of feedback.cu, a row to 8 lanes, on n columns.
std::vector<mx::array> launch(const char* function, const char* arguments, std::vector<kernels::CudaInput> inputs,
                              std::vector<kernels::CudaOutput> outputs, std::vector<kernels::CudaScalar> scalars, int rows, int n,
                              mx::Dtype scale_dtype, int shared_floats) {
  const auto body = fmt::format("extern __shared__ float4 shared[];\nlquant::{}<{}, {}>(reinterpret_cast<float*>(shared), {});", function,
                                kernels::cuda_type(scale_dtype), n, arguments);
  scalars.push_back({"rows", rows});
  return kernels::call({fmt::format("lquant_{}", function), feedback_cu(), body, std::move(inputs), std::move(outputs), std::move(scalars),
                        kernels::blocks_for(rows, kThreads / kLanesPerRow), kThreads, shared_floats * static_cast<int>(sizeof(float))});
}

float top_of(const Format& format) { return static_cast<float>((1 << format.bits) - 1); }

}  // namespace

mx::array values_of(const Coded& coded, const Format& format) {
  const int n = coded.codes.shape(0), k = coded.codes.shape(1);
  const auto q = mx::reshape(mx::astype(coded.codes, coded.scales.dtype()), {n, k / format.group_size, format.group_size});
  const auto scaled = mx::multiply(q, mx::expand_dims(coded.scales, 2));
  return mx::astype(mx::reshape(mx::add(scaled, mx::expand_dims(coded.biases, 2)), {n, k}), mx::float32);
}

mx::array round_with_feedback(const mx::array& w, const mx::array& unit_upper, const mx::array& scales, const mx::array& biases,
                              const std::vector<int>& group, const Format& format) {
  const int rows = w.shape(0), k = w.shape(1);
  const auto upper = kernels::split(unit_upper);
  const mx::array groups(group.data(), {k}, mx::int32);
  std::vector<mx::array> codes, high, low;
  for (int begin = 0; begin < k; begin += kBlock) {
    const int end = std::min(k, begin + kBlock), n = end - begin;
    const auto before = [&](const mx::array& u) { return mx::slice(u, {0, begin}, {begin, end}); };
    const auto fed = begin > 0
                         ? kernels::precise_product({mx::concatenate(high, 1), mx::concatenate(low, 1)}, {before(upper.high), before(upper.low)})
                         : mx::zeros({rows, n}, mx::float32);
    const auto inside = mx::slice(unit_upper, {begin, begin}, {end, end});
    const auto made = launch("feedback", "w, fed, inside, scales, biases, group, top, rows, groups, codes, high, low",
                             {{"w", columns(w, begin, end)},
                              {"fed", fed},
                              {"inside", inside},
                              {"scales", scales},
                              {"biases", biases},
                              {"group", mx::slice(groups, {begin}, {end})}},
                             {{"codes", {rows, n}, mx::uint8}, {"high", {rows, n}, mx::float32}, {"low", {rows, n}, mx::float32}},
                             {{"top", top_of(format)}, {"groups", scales.shape(1)}}, rows, n, scales.dtype(), n * n);
    codes.push_back(made[0]), high.push_back(made[1]), low.push_back(made[2]);
  }
  auto all = mx::concatenate(codes, 1);
  all.eval();
  return all;
}

Coded refine(const mx::array& w, const mx::array& hessian, const Coded& start, const Format& format, int sweeps) {
  const int rows = w.shape(0), k = w.shape(1), n = format.group_size, groups = k / n;
  const auto dtype = start.scales.dtype();
  // High and low parts beside each other make of the three products one: [eₕ eₗ eₕ] · [Hₕ Hₕ Hₗ]ᵀ.
  const auto h = kernels::split(hessian), e = kernels::split(mx::subtract(w, gpu::values_of(start, format)));
  const auto wide = mx::concatenate({h.high, h.high, h.low}, 1);
  auto parts = mx::concatenate({e.high, e.low, e.high}, 1);
  const auto squares = mx::as_strided(mx::contiguous(hessian), {groups, n, n}, {static_cast<std::int64_t>(n) * (k + 1), k, 1}, 0);
  const auto totals = mx::sum(squares, std::vector<int>{1, 2});
  auto made = start;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int first = 0; first < k; first += kWidth) {
      const int count = std::min(kWidth, k - first) / n;
      // Rows of H, turned: it is its own transpose, and so no columns need to be gathered.
      const auto slopes = mx::matmul(parts, mx::transpose(rows_of(wide, first, first + count * n)));
      const auto next = launch(
          "refine",
          "w, old_parts, slopes, hessian, totals, old_codes, old_scales, old_biases, first, count, top, rows, k, codes, parts, scales, biases",
          {{"w", w},
           {"old_parts", parts},
           {"slopes", slopes},
           {"hessian", hessian},
           {"totals", totals},
           {"old_codes", made.codes},
           {"old_scales", made.scales},
           {"old_biases", made.biases}},
          {{"codes", {rows, k}, mx::uint8},
           {"parts", {rows, 3 * k}, mx::float32},
           {"scales", {rows, groups}, dtype},
           {"biases", {rows, groups}, dtype}},
          {{"first", first}, {"count", count}, {"top", top_of(format)}, {"k", k}}, rows, n, dtype, n * n + kThreads / kLanesPerRow * (kWidth + n));
      made = {next[0], next[2], next[3]}, parts = next[1];
      kernels::settle({parts, made.codes, made.scales, made.biases});
    }
  }
  mx::eval(made.codes, made.scales, made.biases);
  return made;
}

}  // namespace lquant::codec::gpu
