#include "cli/threads.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <string>

namespace lquant::cli {
namespace {

#if defined(__linux__) && defined(_OPENMP)
// Turns of the waiting loop, some hundredths of a millisecond; the runtime's own default is 300,000. docs/methods/dwq.md has what they cost.
constexpr const char* kTurns = "2000";

bool is_set(const char* name) { return std::getenv(name) != nullptr; }

/// Whether the environment has been changed.
bool settle_environment() {
  bool changed = false;
  const auto set = [&](const char* name, const std::string& value) { changed = ::setenv(name, value.c_str(), 1) == 0 || changed; };
  if (!is_set("OMP_WAIT_POLICY") && !is_set("GOMP_SPINCOUNT")) set("GOMP_SPINCOUNT", kTurns);
  if (omp_get_thread_limit() < omp_get_max_threads()) set("OMP_NUM_THREADS", std::to_string(omp_get_thread_limit()));
  if (omp_get_dynamic()) set("OMP_DYNAMIC", "false");
  if (omp_get_max_active_levels() < 1) set("OMP_MAX_ACTIVE_LEVELS", "1");
  return changed;
}
#endif

}  // namespace

void settle_threads(char** argv) {
#if defined(__linux__) && defined(_OPENMP)
  if (!settle_environment()) return;
  // By its own path, for what lists processes shows the name that was started.
  char path[PATH_MAX + 1];
  const auto size = ::readlink("/proc/self/exe", path, PATH_MAX);
  if (size > 0) {
    path[size] = 0;
    ::execv(path, argv);
  }
  // Where that cannot be done: all but how threads wait, and for this thread alone, which is the one that computes.
  omp_set_num_threads(std::min(omp_get_thread_limit(), omp_get_max_threads()));
  omp_set_dynamic(0);
  omp_set_max_active_levels(std::max(1, omp_get_max_active_levels()));
#endif
}

}  // namespace lquant::cli
