// The plan of feedback_cpu.cpp: between blocks of columns matrix products, inside a block one kernel in which every row runs on its own.
#include "codec/feedback_gpu.h"

#include <mlx/mlx.h>

#include <algorithm>

#include "codec/feedback_cuda.h"

namespace lquant::codec::gpu {
namespace {

// As the CPU's; [128, 128] in f32 is also what three thread blocks at once have room for in shared memory.
constexpr int kBlock = 128;
// Sixteen rows: small matrices still reach many processors, and a block's rows are many beside the square matrix that it loads.
constexpr int kThreads = 128;

mx::array columns(const mx::array& x, int begin, int end) { return mx::slice(x, {0, begin}, {x.shape(0), end}); }
mx::array rows_of(const mx::array& x, int begin, int end) { return mx::slice(x, {begin, 0}, {end, x.shape(1)}); }

/// x = high + low exactly, high of 11 bits as tensor cores take it, low at most 2⁻¹¹ of it.
struct Parts {
  mx::array high, low;
};

Parts split(const mx::array& x) {
  const auto half = mx::array(0x1000u, mx::uint32), mask = mx::array(0xffffe000u, mx::uint32);
  const auto high = mx::view(mx::bitwise_and(mx::add(mx::view(x, mx::uint32), half), mask), mx::float32);
  return {high, mx::subtract(x, high)};
}

/// What is left out, low · low, is 2⁻²² of every term.
mx::array product(const Parts& a, const Parts& b) {
  const auto small = mx::addmm(mx::matmul(a.low, b.high), a.high, b.low);
  return mx::addmm(small, a.high, b.high);
}

using Inputs = std::vector<mx::array>;

/// Calls a kernel of one row to 8 lanes on `n` columns.
Inputs launch(const mx::fast::CustomKernelFunction& kernel, const Inputs& inputs, const std::vector<mx::Shape>& shapes,
              const std::vector<mx::Dtype>& dtypes, int rows, int n, mx::Dtype scale_dtype) {
  const int rows_per_block = kThreads / kLanesPerRow, blocks = (rows + rows_per_block - 1) / rows_per_block;
  return kernel(inputs, shapes, dtypes, {blocks * kThreads, 1, 1}, {kThreads, 1, 1}, {{"n", n}, {"S", scale_dtype}}, std::nullopt, false,
                mx::Device::gpu);
}

int square_bytes(int n) { return n * n * static_cast<int>(sizeof(float)); }

mx::array top_of(const Format& format) { return mx::array({static_cast<float>((1 << format.bits) - 1)}, {1}); }

/// One group of columns while it is refined.
struct Block {
  mx::array first, w, own, total, codes, scales, biases;
};

}  // namespace

mx::array product(const mx::array& a, const mx::array& b) { return product(split(a), split(b)); }

mx::array values_of(const Coded& coded, const Format& format) {
  const int n = coded.codes.shape(0), k = coded.codes.shape(1);
  const auto q = mx::reshape(mx::astype(coded.codes, coded.scales.dtype()), {n, k / format.group_size, format.group_size});
  const auto scaled = mx::multiply(q, mx::expand_dims(coded.scales, 2));
  return mx::astype(mx::reshape(mx::add(scaled, mx::expand_dims(coded.biases, 2)), {n, k}), mx::float32);
}

mx::array round_with_feedback(const mx::array& w, const mx::array& unit_upper, const mx::array& scales, const mx::array& biases,
                              const std::vector<int>& group, const Format& format) {
  const int rows = w.shape(0), k = w.shape(1);
  const auto top = top_of(format);
  const auto upper = split(unit_upper);
  std::vector<mx::array> codes, high, low;
  for (int begin = 0; begin < k; begin += kBlock) {
    const int end = std::min(k, begin + kBlock), n = end - begin;
    const auto before = [&](const mx::array& u) { return mx::slice(u, {0, begin}, {begin, end}); };
    const auto fed = begin > 0 ? product(Parts{mx::concatenate(high, 1), mx::concatenate(low, 1)}, {before(upper.high), before(upper.low)})
                               : mx::zeros({rows, n}, mx::float32);
    const auto kernel = mx::fast::cuda_kernel("lquant_feedback", {"w", "fed", "inside", "scales", "biases", "group", "top"}, {"codes", "high", "low"},
                                              kCudaFeedback, kCudaCommon, true, square_bytes(n));
    const auto inside = mx::slice(unit_upper, {begin, begin}, {end, end});
    const auto made = launch(kernel, {columns(w, begin, end), fed, inside, scales, biases, mx::array(group.data() + begin, {n}, mx::int32), top},
                             {{rows, n}, {rows, n}, {rows, n}}, {mx::uint8, mx::float32, mx::float32}, rows, n, scales.dtype());
    codes.push_back(made[0]), high.push_back(made[1]), low.push_back(made[2]);
  }
  auto all = mx::concatenate(codes, 1);
  all.eval();
  return all;
}

Coded refine(const mx::array& w, const mx::array& hessian, const Coded& start, const Format& format, int sweeps) {
  const int rows = w.shape(0), k = w.shape(1), n = format.group_size, groups = k / n;
  const auto dtype = start.scales.dtype();
  const auto top = top_of(format);
  const auto kernel = mx::fast::cuda_kernel(
      "lquant_refine", {"w", "old_high", "old_low", "slopes", "own", "total", "old_codes", "old_scales", "old_biases", "first", "top"},
      {"codes", "high", "low", "scales", "biases"}, kCudaRefine, kCudaCommon, true, square_bytes(n));
  const auto h = split(hessian);
  auto errors = split(mx::subtract(w, gpu::values_of(start, format)));
  std::vector<Block> blocks;
  for (int g = 0; g < groups; ++g) {
    const auto cut = [&](const mx::array& x) { return mx::contiguous(columns(x, g * n, (g + 1) * n)); };
    const auto own = mx::contiguous(mx::slice(hessian, {g * n, g * n}, {(g + 1) * n, (g + 1) * n}));
    blocks.push_back({mx::array({g * n}, {1}), cut(w), own, mx::reshape(mx::sum(own), {1}), cut(start.codes),
                      mx::contiguous(columns(start.scales, g, g + 1)), mx::contiguous(columns(start.biases, g, g + 1))});
  }
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int g = 0; g < groups; ++g) {
      auto& b = blocks[g];
      // Rows of H, turned: it is its own transpose, and so no columns need to be gathered.
      const auto wide = [&](const mx::array& x) { return mx::transpose(rows_of(x, g * n, (g + 1) * n)); };
      const auto slopes = product(errors, {wide(h.high), wide(h.low)});
      const auto made =
          launch(kernel, {b.w, errors.high, errors.low, slopes, b.own, b.total, b.codes, b.scales, b.biases, b.first, top},
                 {{rows, n}, {rows, k}, {rows, k}, {rows, 1}, {rows, 1}}, {mx::uint8, mx::float32, mx::float32, dtype, dtype}, rows, n, dtype);
      b.codes = made[0], errors = {made[1], made[2]}, b.scales = made[3], b.biases = made[4];
    }
    // Once for a sweep: a small matrix takes the device less time than the host needs to wait for each of its groups.
    std::vector<mx::array> all{errors.high, errors.low};
    for (const auto& b : blocks) all.insert(all.end(), {b.codes, b.scales, b.biases});
    mx::eval(all);
  }
  const auto joined = [&](mx::array Block::*member) {
    std::vector<mx::array> all;
    for (const auto& b : blocks) all.push_back(b.*member);
    return mx::concatenate(all, 1);
  };
  Coded made{joined(&Block::codes), joined(&Block::scales), joined(&Block::biases)};
  mx::eval(made.codes, made.scales, made.biases);
  return made;
}

}  // namespace lquant::codec::gpu
