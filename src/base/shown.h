#pragma once

#include <string>
#include <string_view>

namespace lquant {

/// Text out of a file, made fit for a message: valid UTF-8 on one line, without control characters, of at most `most` bytes.
/// A longer one loses its middle: shown("aaa…many…zzz") is "aaaa … zzzz".
std::string shown(std::string_view text, std::size_t most = 120);

}  // namespace lquant
