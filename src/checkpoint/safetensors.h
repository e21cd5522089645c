#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "checkpoint/file.h"

namespace lquant::checkpoint {

namespace mx = mlx::core;

/// Where one tensor lies and what Checkpoint::load makes of it.
struct TensorInfo {
  mx::Dtype dtype = mx::float32;  ///< of the loaded array: F64 becomes float32, F8_E4M3 and F8_E5M2 bfloat16, F8_E8M0 uint8 (as in MLX)
  std::string stored;             ///< the dtype as the file names it, e.g. "BF16"
  mx::Shape shape;
  std::filesystem::path file;
  std::uint64_t begin = 0, end = 0;  ///< bytes [begin, end) of the file, counted from its start
};

/// The head of a safetensors file (https://huggingface.co/docs/safetensors), checked.
struct Header {
  std::map<std::string, std::string> metadata;  ///< "__metadata__"
  std::map<std::string, TensorInfo> tensors;
  std::uint64_t data_begin = 0;  ///< where the tensors' bytes start: 8 + the header's length
};

/// The 8 bytes before a header of so many bytes, padding included.
std::string length_bytes(std::uint64_t header_bytes);

/// Length of the JSON header, from the file's first bytes (8 of them, or all that there are). Throws Error when it is no
/// length that a file of `file_size` bytes can have, or is more than 100 MB (the limit of the reference implementation).
std::uint64_t header_length(std::string_view first_bytes, std::uint64_t file_size, const std::filesystem::path& file);

/// Checks the header of a file of `file_size` bytes; `text` is its JSON. What is accepted is accepted by the reference
/// implementation too, and for each tensor begin ≤ end ≤ file_size and end − begin = elements · bytes per element. Throws Error,
/// naming the file and the tensor, for: invalid or too deeply nested JSON, a repeated key, an unknown dtype, a shape that is not
/// of integers in [0, 2^31), an overflow, offsets that disagree with the shape, overlaps, holes, a file cut short or too long.
/// Data that is not aligned to its dtype is accepted: loading copies.
Header parse_header(std::string_view text, std::uint64_t file_size, const std::filesystem::path& file);

/// header_length and parse_header on an open file.
Header read_header(const File& file);

/// Bytes that an element takes in the file; 0 for a dtype that is not known.
std::size_t stored_bytes(std::string_view stored);

/// The name under which safetensors stores an MLX dtype. Throws std::invalid_argument for complex64, which the format lacks.
std::string stored_name(mx::Dtype dtype);

/// A name out of a file, made fit for a message: quoted, control characters escaped, cut to a readable length.
std::string in_quotes(std::string_view name);

}  // namespace lquant::checkpoint
