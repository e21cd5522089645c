#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace lquant {

/// Calls body(i) for every i below `count` on up to 16 threads; the first exception is thrown again when all have stopped. For files: what computes
/// has OpenMP (kernels/parallel.h).
template <class Body>
void on_threads(std::size_t count, const Body& body) {
  constexpr std::size_t kThreads = 16;  // more do not help: some twenty saturate the memory of any machine
  std::atomic<std::size_t> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&] {
    for (std::size_t i; (i = next++) < count;) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = count;
      }
    }
  };
  const auto threads = std::min({count, kThreads, std::max<std::size_t>(1, std::thread::hardware_concurrency())});
  {
    std::vector<std::jthread> others;
    for (std::size_t t = 1; t < threads; ++t) others.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace lquant
