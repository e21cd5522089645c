#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lquant::checkpoint::gguf {

/// How a GGUF file stores numbers: blocks of `elements` consecutive values of a row in `bytes` bytes.
struct BlockType {
  std::uint32_t id = 0;   ///< as the file writes it (ggml_type in ggml.h)
  const char* name = "";  ///< as llama.cpp prints it, e.g. "Q4_K"
  std::size_t elements = 1, bytes = 0;
  /// Turns `blocks` blocks into blocks · elements floats; null for integers, which are no weights.
  void (*decode)(const std::uint8_t* data, std::size_t blocks, float* out) = nullptr;
};

/// Null when lquant does not read the type.
const BlockType* find_type(std::uint32_t id);
/// The same by name.
const BlockType* find_type(const std::string& name);
/// The name of any type of the format, read or not; "number N" where it has none.
std::string type_name(std::uint32_t id);
/// Names of the types that are read, in the order of their ids.
std::vector<std::string> type_names();

}  // namespace lquant::checkpoint::gguf
