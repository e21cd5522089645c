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

/// What `work` returns. An Error that it throws is thrown again with the place of the data at hand behind its tag: "[text] rows.jsonl: row 23: …".
/// `place()` gives that place; it is called for an Error alone.
template <class Place, class Work>
decltype(auto) with_place(const Place& place, const Work& work) {
  try {
    return work();
  } catch (const UsageError&) {
    throw;
  } catch (const Interrupted&) {
    throw;
  } catch (const Error& e) {
    const std::string text = e.what();
    const auto tag = text.starts_with('[') ? text.find("] ") : std::string::npos;
    if (tag == std::string::npos) throw Error(fmt::format("{}: {}", place(), text));
    throw Error(fmt::format("{} {}: {}", text.substr(0, tag + 1), place(), text.substr(tag + 2)));
  }
}

}  // namespace lquant
