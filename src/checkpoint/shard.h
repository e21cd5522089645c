#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/hash.h"
#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint {

/// One safetensors file in the making. The header stands before the data and is known only after it, so the data go to a file of
/// their own first and are copied behind the header at the end: nothing but the tensor at hand is in memory.
class Shard {
 public:
  /// `path` is where finish() puts the file; the data lie in "PATH.data" until then. Throws Error as File does.
  explicit Shard(std::filesystem::path path);

  /// Appends one tensor; `value` is evaluated and row-major.
  void add(const std::string& name, const mx::array& value);
  /// Appends the bytes of a tensor as they lie in a file, a piece at a time.
  void copy(const std::string& name, const TensorInfo& info, const File& from);
  /// Writes the header (metadata {"format": "mlx"}, tensors in the order added, padded with spaces to a multiple of 8 bytes) and the
  /// data to the final file and removes the other.
  void finish();
  /// Reads the finished file back. Throws Error when it is not byte for byte what was added.
  void verify() const;

  const std::filesystem::path& path() const { return path_; }
  /// The finished file has got another name.
  void renamed(std::filesystem::path path) { path_ = std::move(path); }
  const std::vector<std::string>& names() const { return names_; }
  std::uint64_t data_bytes() const { return bytes_; }

 private:
  void enter(const std::string& name, const std::string& stored, const mx::Shape& shape, std::uint64_t bytes);

  std::filesystem::path path_;
  std::optional<File> data_;
  Sha256 hash_;
  std::string digest_;  // of the data as they were in memory
  std::string entries_, header_;
  std::vector<std::string> names_;
  std::uint64_t bytes_ = 0;
};

}  // namespace lquant::checkpoint
