#include "cli/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <initializer_list>
#include <system_error>
#include <thread>

#include "base/error.h"

namespace lquant::cli {

namespace {

constexpr std::initializer_list<int> kEnding = {SIGINT, SIGTERM, SIGHUP};

bool ignored(int signal) {
  struct sigaction action {};
  return ::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

/// Those that this process takes. SIGINT always: see the header.
sigset_t taken() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : kEnding)
    if (signal == SIGINT || !ignored(signal)) ::sigaddset(&set, signal);
  return set;
}

void block() {
  const auto set = taken();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

#ifdef __linux__
// Runs before the initialisers of every shared library. OpenBLAS starts its threads in its own, and a thread has the mask of who starts it.
using Early = void (*)(int, char**, char**);
[[gnu::used, gnu::section(".preinit_array")]] const Early kEarly = [](int, char**, char**) { block(); };
#endif

/// Ends the program as the signal would have, had nobody taken it.
void end_by(int signal) {
  std::signal(signal, SIG_DFL);
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, signal);
  ::kill(::getpid(), signal);
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

}  // namespace

void take_signals(run::Stop& stop) {
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);
#endif
  block();
  if (ignored(SIGINT)) std::signal(SIGINT, SIG_DFL);  // an ignored signal would be dropped, not kept for sigwait
  try {
    std::thread([&stop, set = taken()] {
      for (;;) {
        int signal = 0;
        if (::sigwait(&set, &signal) != 0) continue;
        if (!stop.heeded() || stop.requested()) end_by(signal);
        stop.request();
        if (::isatty(STDERR_FILENO)) std::fputs("\r\033[Kending after the step at hand; once more ends at once\n", stderr);
      }
    }).detach();
  } catch (const std::system_error& e) {
    fail("cli", "no thread can be started ({}); raise the limits on processes and memory (ulimit -u, ulimit -v)", e.code().message());
  }
}

}  // namespace lquant::cli
