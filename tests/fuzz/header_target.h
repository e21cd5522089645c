#pragma once

#include <string_view>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace lquant::fuzz {

/// Takes any bytes for a safetensors file. They are refused with an Error, or else all that the header promises about them
/// holds; anything else ends the process. Returns whether they were accepted.
inline bool header_target(std::string_view bytes) {
  const auto require = [](bool holds) {
    if (!holds) __builtin_trap();
  };
  try {
    const auto length = checkpoint::header_length(bytes.substr(0, 8), bytes.size(), "fuzz.safetensors");
    const auto header = checkpoint::parse_header(bytes.substr(8, length), bytes.size(), "fuzz.safetensors");
    std::uint64_t sum = 0;
    for (const auto& [name, info] : header.tensors) {
      std::uint64_t bytes_needed = checkpoint::stored_bytes(info.stored);
      for (const auto size : info.shape) bytes_needed *= static_cast<std::uint64_t>(size);
      require(header.data_begin <= info.begin && info.begin <= info.end && info.end <= bytes.size());
      require(info.end - info.begin == bytes_needed);
      sum += bytes_needed;
    }
    require(header.data_begin + sum == bytes.size());  // with the above: every byte belongs to one tensor
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace lquant::fuzz
