// Here are the checks and the way by MLX's ops, one column of all rows at a time; feedback_cpu.cpp and feedback_gpu.cpp have the fast ones.
#include "codec/feedback.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "codec/feedback_cpu.h"
#include "codec/feedback_gpu.h"
#include "codec/quantize.h"
#include "kernels/linear.h"
#include "kernels/precise_product.h"
#include "kernels/primitive.h"

namespace lquant::codec {
namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(std::string("[codec] ") + what);
}

void check(const mx::array& w, const mx::array& square, const mx::array& scales, const mx::array& biases, const Format& format) {
  require(format.mode == Mode::affine, "error feedback is for the affine mode");
  require(w.ndim() == 2 && w.dtype() == mx::float32, "the weight must be f32 [N, K]");
  require(square.shape() == mx::Shape{w.shape(1), w.shape(1)} && square.dtype() == mx::float32, "the factor or Hessian must be f32 [K, K]");
  require(w.shape(1) % format.group_size == 0, "K must be a multiple of the group size");
  require(scales.shape() == mx::Shape{w.shape(0), w.shape(1) / format.group_size} && biases.shape() == scales.shape() &&
              biases.dtype() == scales.dtype() && mx::issubdtype(scales.dtype(), mx::floating),
          "scales and biases must be [N, K/group_size] of one float dtype");
}

mx::array column(const mx::array& x, int j) { return mx::slice(x, {0, j}, {x.shape(0), j + 1}); }
mx::array columns(const mx::array& x, int begin, int end) { return mx::slice(x, {0, begin}, {x.shape(0), end}); }
mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }

/// Nearest codes (f32) and what they stand for; q·s and the sum are rounded to the scales' dtype as dequantization does.
mx::array nearest(const mx::array& x, const mx::array& s, const mx::array& b, float top) {
  const auto q = mx::round(mx::divide(mx::subtract(x, f32(b)), f32(s)));
  return mx::clip(mx::nan_to_num(q, 0.0f, top, 0.0f), mx::array(0.0f), mx::array(top));
}
mx::array value(const mx::array& q, const mx::array& s, const mx::array& b) { return f32(mx::add(mx::multiply(mx::astype(q, s.dtype()), s), b)); }

// As the CPU's: wide enough for fast products, narrow enough that little is done inside.
constexpr int kBlock = 128;

}  // namespace

mx::array round_with_feedback(const mx::array& w, const mx::array& unit_upper, const mx::array& scales, const mx::array& biases,
                              const std::vector<int>& group, const Format& format) {
  check(w, unit_upper, scales, biases, format);
  const int k = w.shape(1), groups = scales.shape(1);
  require(static_cast<int>(group.size()) == k, "every column needs a group");
  for (int g : group) require(g >= 0 && g < groups, "a column's group does not exist");
  if constexpr (cpu::built) {
    if (kernels::cpu_kernels()) return cpu::round_with_feedback(w, unit_upper, scales, biases, group, format);
  }
  if (kernels::cuda_kernels()) return gpu::round_with_feedback(w, unit_upper, scales, biases, group, format);
  const float top = static_cast<float>((1 << format.bits) - 1);
  std::vector<mx::array> codes, errors;
  for (int begin = 0; begin < k; begin += kBlock) {
    const int end = std::min(k, begin + kBlock);
    auto aim = columns(w, begin, end);
    if (begin > 0) aim = mx::add(aim, mx::matmul(mx::concatenate(errors, 1), mx::slice(unit_upper, {0, begin}, {begin, end})));
    const auto inside = mx::triu(mx::slice(unit_upper, {begin, begin}, {end, end}), 1);
    std::vector<mx::array> block;
    for (int j = begin; j < end; ++j) {
      const auto s = column(scales, group[j]), b = column(biases, group[j]);
      const auto q = nearest(column(aim, j - begin), s, b, top);
      const auto e = mx::subtract(column(w, j), value(q, s, b));
      aim = mx::add(aim, mx::matmul(e, mx::slice(inside, {j - begin, 0}, {j - begin + 1, end - begin})));
      codes.push_back(mx::astype(q, mx::uint8));
      block.push_back(e);
    }
    errors.push_back(mx::concatenate(block, 1));
    codes = {mx::concatenate(codes, 1)};
    mx::eval(errors.back(), codes.front());
  }
  return codes.front();
}

mx::array take_columns(const mx::array& x, const std::vector<int>& order) {
  require(x.ndim() == 2 && x.shape(1) == static_cast<int>(order.size()), "an order must name every column");
  require(x.dtype() == mx::float32 || x.dtype() == mx::uint8, "columns of f32 or u8 can be reordered");
  for (int c : order) require(c >= 0 && c < x.shape(1), "an order names a column that does not exist");
  if constexpr (cpu::built) {
    if (kernels::cpu_kernels()) return cpu::take_columns(x, order);
  }
  return mx::take(x, mx::array(order.data(), {static_cast<int>(order.size())}, mx::int32), 1);
}

Coded refine(const mx::array& w, const mx::array& hessian, const Coded& start, const Format& format, int sweeps) {
  check(w, hessian, start.scales, start.biases, format);
  require(start.codes.shape() == w.shape() && start.codes.dtype() == mx::uint8, "codes must be u8 [N, K]");
  if (sweeps <= 0) return start;
  if constexpr (cpu::built) {
    if (kernels::cpu_kernels()) return cpu::refine(w, hessian, start, format, sweeps);
  }
  if (kernels::cuda_kernels()) return gpu::refine(w, hessian, start, format, sweeps);
  const int n = format.group_size, groups = w.shape(1) / n;
  const float top = static_cast<float>((1 << format.bits) - 1);
  auto errors = mx::subtract(w, values_of(start, format));
  std::vector<mx::array> q, s, b;
  for (int g = 0; g < groups; ++g) {
    q.push_back(f32(columns(start.codes, g * n, (g + 1) * n)));
    s.push_back(column(start.scales, g));
    b.push_back(column(start.biases, g));
  }
  const auto sum = [](const mx::array& x) { return mx::sum(x, 1, true); };
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int g = 0; g < groups; ++g) {
      const auto h = mx::slice(hessian, {g * n, g * n}, {(g + 1) * n, (g + 1) * n}), wide = mx::slice(hessian, {0, g * n}, {w.shape(1), (g + 1) * n});
      const auto target = columns(w, g * n, (g + 1) * n);
      auto e = columns(errors, g * n, (g + 1) * n), r = mx::matmul(errors, wide);
      const auto ones = mx::sum(h, 0, true), total = mx::sum(h);
      const auto refit = [&] {
        const auto hq = mx::matmul(q[g], h), a = sum(mx::multiply(q[g], hq)), mixed = sum(hq), rq = sum(mx::multiply(r, q[g])), r1 = sum(r);
        const auto determinant = mx::subtract(mx::multiply(a, total), mx::square(mixed));
        const auto solvable = mx::greater(determinant, mx::multiply(mx::multiply(a, total), mx::array(1e-5f)));
        const auto ds = mx::divide(mx::subtract(mx::multiply(total, rq), mx::multiply(mixed, r1)), mx::where(solvable, determinant, mx::array(1.0f)));
        const auto s2 = mx::astype(mx::add(f32(s[g]), ds), s[g].dtype());
        const auto db = mx::divide(mx::subtract(r1, mx::multiply(mixed, mx::subtract(f32(s2), f32(s[g])))), mx::maximum(total, mx::array(1e-30f)));
        const auto b2 = mx::astype(mx::add(f32(b[g]), db), s[g].dtype());
        const auto d = mx::subtract(mx::subtract(target, value(q[g], s2, b2)), e), hd = mx::matmul(d, h);
        const auto gain = mx::add(mx::multiply(sum(mx::multiply(r, d)), mx::array(2.0f)), sum(mx::multiply(d, hd)));
        const auto better = mx::logical_and(mx::logical_and(solvable, mx::less(gain, mx::array(0.0f))), mx::not_equal(s2, mx::zeros_like(s2)));
        s[g] = mx::where(better, s2, s[g]);
        b[g] = mx::where(better, b2, b[g]);
        const auto used = mx::where(better, mx::array(1.0f), mx::array(0.0f));
        e = mx::add(e, mx::multiply(used, d));
        r = mx::add(r, mx::multiply(used, hd));
      };
      refit();
      auto codes = q[g];
      std::vector<mx::array> changed;
      for (int j = 0; j < n; ++j) {
        const auto own = mx::slice(h, {j, j}, {j + 1, j + 1}), row = mx::slice(h, {j, 0}, {j + 1, n}), r_j = column(r, j);
        const auto before = column(codes, j), at = value(before, s[g], b[g]);
        const auto after = nearest(mx::add(at, mx::divide(r_j, mx::maximum(own, mx::array(1e-30f)))), s[g], b[g], top);
        const auto d = mx::subtract(at, value(after, s[g], b[g]));
        const auto gain = mx::multiply(d, mx::add(mx::multiply(r_j, mx::array(2.0f)), mx::multiply(own, d)));
        const auto better = mx::less(gain, mx::array(0.0f));
        changed.push_back(mx::where(better, after, before));
        r = mx::add(r, mx::matmul(mx::where(better, d, mx::zeros_like(d)), row));
      }
      q[g] = mx::concatenate(changed, 1);
      e = mx::subtract(target, value(q[g], s[g], b[g]));
      refit();
      errors = mx::slice_update(errors, e, mx::Shape{0, g * n}, mx::Shape{w.shape(0), (g + 1) * n});
      mx::eval(errors, q[g], s[g], b[g]);
    }
  }
  return {mx::astype(mx::concatenate(q, 1), mx::uint8), mx::concatenate(s, 1), mx::concatenate(b, 1)};
}

mx::array values_of(const Coded& coded, const Format& format) {
  if (kernels::cuda_kernels()) return gpu::values_of(coded, format);
  return kernels::dequantize_affine(pack_codes(coded.codes, format.bits), coded.scales, coded.biases, format.bits, format.group_size, mx::float32);
}

double feedback_error(const mx::array& w, const mx::array& quantized, const mx::array& hessian) {
  return feedback_errors(w, {quantized}, hessian)[0];
}

std::vector<double> feedback_errors(const mx::array& w, const std::vector<mx::array>& quantized, const mx::array& hessian) {
  std::vector<double> errors;
  if constexpr (cpu::built) {
    if (kernels::cpu_kernels()) {
      for (const auto& one : quantized) errors.push_back(cpu::feedback_error(w, one, hessian));
      return errors;
    }
  }
  std::vector<mx::array> differences;
  for (const auto& one : quantized) differences.push_back(mx::subtract(w, one));
  const auto e = differences.size() == 1 ? differences.front() : mx::concatenate(differences, 0);
  // H is its own transpose. An outlier channel's terms are thousands of times as large as the change of the sum that a code is judged by.
  const auto product = mx::multiply(kernels::cuda_kernels() ? kernels::precise_product(e, hessian) : kernels::linear(e, {hessian, std::nullopt}), e);
  auto sums = mx::sum(mx::reshape(product, {static_cast<int>(quantized.size()), -1}), 1);
  sums.eval();
  for (std::size_t i = 0; i < quantized.size(); ++i) errors.push_back(sums.data<float>()[i]);
  return errors;
}

}  // namespace lquant::codec
