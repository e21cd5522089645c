#include "cli/waiting.h"

#include <unistd.h>

#include <climits>
#include <cstdlib>

namespace lquant::cli {

void wait_briefly(char** argv) {
#if defined(__linux__) && defined(LQUANT_ONEDNN)
  // Turns of the waiting loop, some tenths of a millisecond; the runtime's own default is 300,000. Chosen among 0, 1,000, 10,000 and 50,000 by dwq,
  // gptq and perplexity on two cores, with and without a busy neighbour: the fewest that cost nothing where the machine is free.
  constexpr const char* kTurns = "10000";
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  if (::setenv("GOMP_SPINCOUNT", kTurns, 1) != 0) return;
  // By its own path, for what lists processes shows the name that was started. Where that cannot be done, all goes on as it was.
  char path[PATH_MAX + 1];
  const auto size = ::readlink("/proc/self/exe", path, PATH_MAX);
  if (size <= 0) return;
  path[size] = 0;
  ::execv(path, argv);
#endif
}

}  // namespace lquant::cli
