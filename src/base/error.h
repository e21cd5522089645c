#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace lquant {

/// A user's mistake or a fault of the input: one sentence that names the file or flag and the mend.
/// `main` prints it and exits with 1. The text starts with the room's tag: "[checkpoint] …".
class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Wrong use of the command line; exit code 2.
class UsageError : public Error {
  using Error::Error;
};

/// The run was interrupted after its state was saved; exit code 130.
class Interrupted : public Error {
  using Error::Error;
};

/// fail("checkpoint", "{}: truncated; download it again", path) throws Error("[checkpoint] …").
template <class... Args>
[[noreturn]] void fail(const char* room, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format("[{}] {}", room, fmt::format(format, std::forward<Args>(args)...)));
}

}  // namespace lquant
