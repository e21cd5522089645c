#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/gguf/types.h"

namespace lquant::checkpoint::gguf {

namespace mx = mlx::core;

/// Types of metadata, numbered as the file numbers them.
enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
constexpr std::uint32_t kValueTypes = 13;
/// "whole number", "text", …, for messages.
const char* describe(ValueType type);

/// One entry of the metadata. Views into the header's text.
struct Value {
  ValueType type = ValueType::u8;
  ValueType element = ValueType::u8;      ///< of an array
  std::uint64_t count = 1;                ///< elements of an array
  std::string_view bytes;                 ///< the numbers, or the text
  std::vector<std::string_view> strings;  ///< of an array of texts

  bool numeric() const;
  /// Element i of an array of numbers or truths, or (i = 0) the value itself; i < count. Whole numbers beyond 2^53 are rounded.
  double number(std::uint64_t i = 0) const;
};

struct Tensor {
  std::string name;
  const BlockType* type = nullptr;
  mx::Shape shape;                   ///< outermost dimension first, as in safetensors; the file has it the other way round
  std::uint64_t begin = 0, end = 0;  ///< bytes [begin, end) of the file, counted from its start
};

/// The head of one GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), checked.
struct Header {
  std::uint32_t version = 0;
  std::map<std::string, Value, std::less<>> metadata;
  std::vector<Tensor> tensors;  ///< in the order of the file
  std::uint64_t data_begin = 0;
  std::shared_ptr<const std::string> text;  ///< what the values' views look into
};

/// Reads a header from the first bytes of a file of `file_size` bytes; nothing when they end before the header does and the file goes on. For
/// each tensor begin ≤ end ≤ file_size, the bytes are those that shape and type ask for, and no two tensors share any. Throws Error, naming
/// the file and what is wrong: no GGUF file, version 1 or a later one than 3, big-endian, cut short, a length or a count larger than the
/// file, a key or a tensor twice, an unknown type, a shape that overflows or is no whole number of blocks, data that overlap or are not
/// aligned.
std::optional<Header> parse_header(std::shared_ptr<const std::string> first_bytes, std::uint64_t file_size, const std::filesystem::path& file);

/// The same of an open file.
Header read_header(const File& file);

}  // namespace lquant::checkpoint::gguf
