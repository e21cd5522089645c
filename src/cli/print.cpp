#include "cli/print.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace lquant::cli {

namespace {

[[noreturn]] void fail_to_write(int error) {
  throw Error(fmt::format("standard output cannot be written ({}); what the command prints is lost, files that it has written are not: "
                          "free space, or send its output elsewhere",
                          error == EBADF ? "it is closed" : std::strerror(error)));
}

}  // namespace

void prepare_streams() {
  std::signal(SIGPIPE, SIG_IGN);
  // In this order each free number is the lowest there is, which is the one that open() takes. Writing to what was opened for reading is EBADF.
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(stream, F_GETFD) < 0) (void)!::open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY);
}

void put(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail_to_write(errno);
}

void flush_output() {
  if (std::fflush(stdout) != 0) fail_to_write(errno);
}

void close_output() {
  // An error of an earlier write need not come again: what could not be written is gone from the buffer.
  const bool failed = std::ferror(stdout) != 0;
  if (std::fclose(stdout) != 0) fail_to_write(errno);
  if (failed) fail_to_write(EIO);
}

}  // namespace lquant::cli
