#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

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

/// Calls body(task) for every task in [0, count), each on whichever thread is free. The first exception is thrown again when all have stopped.
template <class Body>
void parallel_tasks(std::int64_t count, const Body& body) {
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int64_t task = 0; task < count; ++task) {
    if (failed) continue;
    try {
      body(task);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace lquant::kernels
