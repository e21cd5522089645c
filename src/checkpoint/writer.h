#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint {

namespace mx = mlx::core;

/// Writes a model folder tensor by tensor: at any moment one tensor is in memory, and under the output's name there is either
/// nothing or the whole. The bytes depend on what is added, and in which order, alone.
/// Wrong use (a name twice, a call after commit) is std::invalid_argument; a full disk and the like an Error naming the file.
class Writer {
 public:
  /// Starts a shard whenever the next tensor would take the current one past `shard_bytes` of data, as mlx_lm does; a larger tensor has a shard
  /// of its own. Throws Error when `output` exists or cannot be made (see PartialFolder).
  explicit Writer(const std::filesystem::path& output, std::uint64_t shard_bytes = 5'000'000'000);
  /// Removes all that was written unless committed.
  ~Writer();

  /// Evaluates and appends a tensor. Dtypes are all of MLX's but complex64.
  void add(const std::string& name, const mx::array& value);
  /// Appends a tensor of another file byte for byte, under this name; a few megabytes of it are in memory at a time.
  void copy(const std::string& name, const TensorInfo& info, const File& from);
  /// A further file of the folder; `file` is a plain name.
  void write_text(const std::string& file, std::string_view content);
  /// As Python's json.dump(value, indent=4) writes it: the objects of an ordered_json keep their order, those of a json are sorted.
  void write_json(const std::string& file, const nlohmann::ordered_json& value);
  /// Named tensors, evaluated and row-major, as a safetensors file beside the model's own.
  void write_tensors(const std::string& file, const std::vector<std::pair<std::string, mx::array>>& tensors);
  /// Byte for byte. Throws Error when `from` is no regular file.
  void copy_file(const std::filesystem::path& from, const std::string& as);
  /// What the index says of the number of weights; without it, the number of elements added (right for a dense model).
  void set_total_parameters(std::uint64_t count);

  /// Finishes the shards, names them (model.safetensors, or model-00001-of-0000N.safetensors), writes model.safetensors.index.json,
  /// syncs all, reads every file back and compares, and then gives the folder its name. Throws Error when anything
  /// fails; then there is nothing under the output's name.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lquant::checkpoint
