// LAPACK factors a = L · Lᵀ, L lower. Reading rows and columns backwards turns lower into upper, so the factor that is asked for is the
// reversed factor of the reversed matrix; and reversing both axes of a matrix in memory is reading its memory backwards.
#include "kernels/cholesky.h"

#include <mlx/backend/cuda/cuda.h>
#include <mlx/mlx.h>

#include <cmath>
#include <stdexcept>

#include "kernels/cholesky_cpu.h"
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

std::optional<mx::array> solve_positive(const mx::array& a, const mx::array& b) {
  check(a);
  require(b.ndim() == 2 && b.shape(1) == a.shape(0) && b.dtype() == mx::float32, "solve_positive needs b f32 [N, K]");
  if constexpr (cpu::lapack) return cpu::solve_positive(a, b);  // MLX solves triangles on the CPU alone, by the slow reference LAPACK
  const auto lower = mlx_factor(a);
  if (!lower) return std::nullopt;
  const auto half = mx::linalg::solve_triangular(*lower, mx::transpose(b), false, mx::Device::cpu);
  auto x = mx::contiguous(mx::transpose(mx::linalg::solve_triangular(mx::transpose(*lower), half, true, mx::Device::cpu)));
  x.eval();
  return x;
}

}  // namespace lquant::kernels
