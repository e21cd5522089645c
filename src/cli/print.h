#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string_view>

// Results go to stdout, and through here alone: a result that cannot be written (a full disk, a closed stdout, a pipe whose reader is gone) is
// an error, and a command that ends with exit code 0 has delivered all of it. Remarks and progress go to stderr (cli/terminal.h).
namespace lquant::cli {

/// To be called before anything is opened. A standard stream that the program was started without (`>&-`) becomes one that reads nothing and
/// refuses or drops what is written: left closed, its number would go to the next file that is opened, and results into that file. A pipe
/// whose reader is gone (SIGPIPE) becomes an error of the write.
void prepare_streams();

/// Appends to stdout, which may keep it for later. Throws Error when it cannot be written.
void put(std::string_view text);

/// put() of a formatted text.
template <class... Args>
void print(fmt::format_string<Args...> format, Args&&... args) {
  put(fmt::format(format, std::forward<Args>(args)...));
}

/// Indented, and a line's end. Bytes of strings that are no UTF-8 become U+FFFD.
template <class Json>
void print_json(const Json& value) {
  put(value.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

/// Hands over what was kept, so that a reader sees it now. Throws Error when it cannot be written.
void flush_output();

/// flush_output() and closes stdout, which is when some file systems tell that there was no room. Nothing may be printed after it.
void close_output();

}  // namespace lquant::cli
