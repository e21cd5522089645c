#include "kernels/cholesky_cpu.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <string>

// The wheel prefixes OpenBLAS's names, so that it can live in one process with any other BLAS.
extern "C" {
void scipy_spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info, std::size_t);
void scipy_spotrs_(const char* uplo, const int* n, const int* nrhs, const float* a, const int* lda, float* b, const int* ldb, int* info, std::size_t);
}

namespace lquant::kernels::cpu {
namespace {

mx::array host_copy(const mx::array& a) {
  auto copy = mx::contiguous(mx::copy(a, mx::Device::cpu), false, mx::Device::cpu);
  copy.eval();
  mx::array owned(copy.shape(), copy.dtype(), nullptr, {});
  owned.set_data(mx::allocator::malloc(copy.nbytes()));
  owned.set_status(mx::array::Status::available);
  std::copy_n(copy.data<float>(), copy.size(), owned.data<float>());
  return owned;
}

/// Row-major lower is column-major upper: LAPACK's "U" leaves L below the diagonal as C++ reads the memory.
bool factor(mx::array& a) {
  const int k = a.shape(0);
  int info = 0;
  scipy_spotrf_("U", &k, a.data<float>(), &k, &info, 1);
  if (info < 0) throw std::runtime_error("[kernels] spotrf refused argument " + std::to_string(-info));
  return info == 0;
}

}  // namespace

std::optional<mx::array> upper_factor(const mx::array& a) {
  auto owned = host_copy(a);
  const auto k = static_cast<std::int64_t>(a.shape(0));
  auto* m = owned.data<float>();
  std::reverse(m, m + k * k);
  if (!factor(owned)) return std::nullopt;
  for (std::int64_t i = 0; i < k; ++i) std::fill(m + i * k + i + 1, m + (i + 1) * k, 0.0f);
  std::reverse(m, m + k * k);
  return owned;
}

std::optional<mx::array> solve_positive(const mx::array& a, const mx::array& b) {
  auto owned = host_copy(a), x = host_copy(b);
  if (!factor(owned)) return std::nullopt;
  const int k = a.shape(0), n = b.shape(0);
  int info = 0;
  scipy_spotrs_("U", &k, &n, owned.data<float>(), &k, x.data<float>(), &k, &info, 1);
  if (info != 0) throw std::runtime_error("[kernels] spotrs refused argument " + std::to_string(-info));
  return x;
}

}  // namespace lquant::kernels::cpu
