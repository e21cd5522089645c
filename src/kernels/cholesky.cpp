// LAPACK factors a = L · Lᵀ, L lower. Reading rows and columns backwards turns lower into upper, so the factor that is asked for is the
// reversed factor of the reversed matrix; and reversing both axes of a matrix in memory is reading its memory backwards.
#include "kernels/cholesky.h"

#include <mlx/backend/cuda/cuda.h>
#include <mlx/mlx.h>

#include <cmath>
#include <stdexcept>

#include "kernels/cholesky_cpu.h"
#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"
#include "kernels/precise_product.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(std::string("[kernels] ") + what);
}

void check(const mx::array& a) {
  require(a.ndim() == 2 && a.shape(0) == a.shape(1) && a.shape(0) > 0 && a.dtype() == mx::float32, "a factor needs f32 [K, K]");
}

mx::array reversed(const mx::array& a) {
  const int k = a.shape(0);
  return mx::slice(a, {k - 1, k - 1}, {-k - 1, -k - 1}, {-1, -1});
}

/// MLX's lower factor, or nullopt: it throws on a CPU where CUDA leaves numbers that are not finite.
std::optional<mx::array> mlx_factor(const mx::array& a) {
  const auto device = mx::default_device() == mx::Device::gpu && mx::cu::is_available() ? mx::Device::gpu : mx::Device::cpu;
  try {
    auto lower = mx::linalg::cholesky(mx::contiguous(a, false, device), false, device);
    const auto diagonal = mx::diagonal(lower);
    if (!mx::all(mx::logical_and(mx::isfinite(mx::sum(lower, 0)), mx::greater(diagonal, mx::array(0.0f)))).item<bool>()) return std::nullopt;
    return lower;
  } catch (const std::runtime_error&) {
    return std::nullopt;
  }
}

constexpr int kTriangle = 32;  // as in triangle.cu

/// Of [R₁ R₁₂; 0 R₂] from the inverses V₁ and V₂: [V₁ −V₁ R₁₂ V₂; 0 V₂]. All may have leading dimensions.
mx::array joined(const mx::array& v1, const mx::array& r12, const mx::array& v2) {
  const auto corner = mx::negative(precise_product(precise_product(v1, r12), v2));
  auto shape = v2.shape();
  shape.back() = v1.shape(-1);
  return mx::concatenate({mx::concatenate({v1, corner}, -1), mx::concatenate({mx::zeros(shape, mx::float32), v2}, -1)}, -2);
}

/// The inverse of an upper triangle: of small ones on its diagonal, then of pairs of neighbours, all pairs of one size at once while their number is
/// even, until one is left. Its error is that of R's condition, which the damping of H bounds.
mx::array inverse_of(const mx::array& upper) {
  const int k = upper.shape(0), padded = (k + kTriangle - 1) / kTriangle * kTriangle;
  auto r = upper;
  if (padded > k) r = mx::slice_update(mx::eye(padded), upper, mx::Shape{0, 0}, mx::Shape{k, k});
  r = mx::contiguous(r);
  auto blocks = call({"lquant_invert_triangles",
                      triangle_cu(),
                      "lquant::invert_triangles(upper, k, out);",
                      {{"upper", r}},
                      {{"out", {padded / kTriangle, kTriangle, kTriangle}, mx::float32}},
                      {{"k", padded}},
                      padded / kTriangle,
                      kTriangle})[0];
  while (blocks.shape(0) % 2 == 0) {
    const int pairs = blocks.shape(0) / 2, size = blocks.shape(1);
    const std::int64_t step = 2 * static_cast<std::int64_t>(size) * (padded + 1);
    const auto across = mx::contiguous(mx::as_strided(r, {pairs, size, size}, {step, padded, 1}, size));
    const auto each = mx::reshape(blocks, {pairs, 2, size, size});
    const auto of = [&](int which) {
      return mx::contiguous(mx::reshape(mx::slice(each, {0, which, 0, 0}, {pairs, which + 1, size, size}), {pairs, size, size}));
    };
    blocks = joined(of(0), across, of(1));
  }
  const int size = blocks.shape(1);
  const auto block = [&](int i) { return mx::reshape(mx::slice(blocks, {i, 0, 0}, {i + 1, size, size}), {size, size}); };
  auto inverse = block(0);
  for (int i = 1; i < blocks.shape(0); ++i) {
    const int end = i * size;
    inverse = joined(inverse, mx::slice(r, {0, end}, {end, end + size}), block(i));
  }
  return mx::slice(inverse, {0, 0}, {k, k});
}

}  // namespace

std::optional<mx::array> upper_factor(const mx::array& a) {
  check(a);
  if constexpr (cpu::lapack) {
    if (cpu_kernels()) return cpu::upper_factor(a);
  }
  const auto lower = mlx_factor(reversed(a));
  if (!lower) return std::nullopt;
  auto factor = mx::contiguous(reversed(mx::tril(*lower)));
  factor.eval();
  return factor;
}

PositiveSolver::PositiveSolver(mx::array upper) : upper_(std::move(upper)) { check(upper_); }

mx::array PositiveSolver::solve(const mx::array& b) const {
  require(b.ndim() == 2 && b.shape(1) == upper_.shape(0) && b.dtype() == mx::float32, "a solution needs b f32 [N, K]");
  if (cuda_kernels()) {
    if (!inverse_) inverse_ = inverse_of(upper_);
    return precise_product(precise_product(b, mx::transpose(*inverse_)), *inverse_);
  }
  if constexpr (cpu::lapack) return cpu::solve_factored(upper_, b);  // MLX solves triangles on the CPU alone, by the slow reference LAPACK
  const auto half = mx::linalg::solve_triangular(upper_, mx::transpose(b), true, mx::Device::cpu);
  auto x = mx::contiguous(mx::transpose(mx::linalg::solve_triangular(mx::transpose(upper_), half, false, mx::Device::cpu)));
  x.eval();
  return x;
}

}  // namespace lquant::kernels
