#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "checkpoint/gguf/header.h"

namespace lquant::fuzz {

/// Takes any bytes for a GGUF file. They are refused with an Error, or else all that the header promises about them holds; anything else ends
/// the process. Returns whether they were accepted.
inline bool gguf_target(std::string_view bytes) {
  const auto require = [](bool holds) {
    if (!holds) __builtin_trap();
  };
  try {
    const auto text = std::make_shared<const std::string>(bytes);
    const auto header = checkpoint::gguf::parse_header(text, bytes.size(), "fuzz.gguf");
    require(header.has_value());  // the bytes are the whole file
    require(header->version == 2 || header->version == 3);
    for (const auto& tensor : header->tensors) {
      std::uint64_t needed = tensor.type->bytes;
      std::uint64_t elements = 1;
      for (const auto size : tensor.shape) elements *= static_cast<std::uint64_t>(size);
      needed = elements / tensor.type->elements * needed;
      require(header->data_begin <= tensor.begin && tensor.begin <= tensor.end);
      require(tensor.end <= bytes.size());
      require(tensor.end - tensor.begin == needed);
    }
    double sum = 0;  // every number is read once, so that a view beyond the bytes would be noticed
    for (const auto& [key, value] : header->metadata) {
      if (value.numeric())
        for (std::uint64_t i = 0; i < value.count; ++i) sum += value.number(i);
      for (const auto text : value.strings) sum += text.empty() ? 0 : text.back();
      if (value.type == checkpoint::gguf::ValueType::string && !value.bytes.empty()) sum += value.bytes.back();
    }
    volatile double kept = sum;
    (void)kept;
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace lquant::fuzz
