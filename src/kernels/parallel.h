#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lquant::kernels {

/// Calls body(begin, end) on slices of [0, n), one a thread, none shorter than `grain` units (so that small work
/// stays on one thread). The split depends on n and the number of threads alone, never on timing.
template <class Body>
void parallel_for(std::int64_t n, std::int64_t grain, const Body& body) {
#ifdef _OPENMP
  const std::int64_t threads =
      std::min<std::int64_t>(omp_in_parallel() ? 1 : omp_get_max_threads(), std::max<std::int64_t>(1, n / std::max<std::int64_t>(1, grain)));
  if (threads > 1) {
#pragma omp parallel num_threads(static_cast <int>(threads))
    {
      const std::int64_t t = omp_get_thread_num(), count = omp_get_num_threads();
      body(n * t / count, n * (t + 1) / count);
    }
    return;
  }
#endif
  if (n > 0) body(std::int64_t{0}, n);
}

}  // namespace lquant::kernels
