#include "kernels/cholesky_cpu.h"

#include <mlx/mlx.h>
#include <omp.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/parallel.h"

// The wheel prefixes OpenBLAS's names, so that it can live in one process with any other BLAS.
extern "C" {
void scipy_openblas_set_num_threads(int threads);
void scipy_spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info, std::size_t);
void scipy_strsm_(const char* side, const char* uplo, const char* trans, const char* diag, const int* m, const int* n, const float* alpha,
                  const float* a, const int* lda, float* b, const int* ldb, std::size_t, std::size_t, std::size_t, std::size_t);
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

// OpenBLAS's threads spin when they wait, which costs other work more than they save on what takes milliseconds.
constexpr int kManyThreads = 4096;

/// How many threads OpenBLAS may use while one lives.
class Threads {
 public:
  explicit Threads(int k) { scipy_openblas_set_num_threads(k >= kManyThreads ? omp_get_max_threads() : 1); }
  ~Threads() { scipy_openblas_set_num_threads(1); }
};

/// Row-major lower is column-major upper: LAPACK's "U" leaves L below the diagonal as C++ reads the memory.
bool factor(mx::array& a) {
  const int k = a.shape(0);
  int info = 0;
  const Threads threads(k);
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

/// Read column by column, R is the lower Rᵀ, and rows of b are columns: R · (Rᵀ · xᵀ) = bᵀ.
mx::array solve_factored(const mx::array& upper, const mx::array& b) {
  auto r = mx::contiguous(mx::copy(upper, mx::Device::cpu), false, mx::Device::cpu);
  r.eval();
  auto x = host_copy(b);
  // Right-hand sides know nothing of each other: each core solves its share on one thread of OpenBLAS.
  const Threads one(0);
  const int k = upper.shape(0);
  const auto* triangle = r.data<float>();
  parallel_for(b.shape(0), 16, [&](std::int64_t begin, std::int64_t end) {
    const int n = static_cast<int>(end - begin);
    const float alpha = 1;
    float* rows = x.data<float>() + begin * k;
    for (const char* transposed : {"T", "N"}) scipy_strsm_("L", "L", transposed, "N", &k, &n, &alpha, triangle, &k, rows, &k, 1, 1, 1, 1);
  });
  return x;
}

}  // namespace lquant::kernels::cpu
