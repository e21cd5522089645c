#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"

namespace lquant::checkpoint {

/// Whether load() refuses a floating-point tensor with a NaN or an infinity in it.
enum class CheckFinite { no, yes };

/// A model folder: config.json and the tensors of its safetensors files, none of them in memory until asked for.
/// A cheap handle; copies share the open files. All functions are safe to call from many threads.
class Checkpoint {
 public:
  /// Opens config.json and every model*.safetensors, and whatever else model.safetensors.index.json names. Tensors that the
  /// index does not name are kept, as mlx_lm keeps them. Throws Error, naming the file and the mend, when the folder, its
  /// config or its tensors are missing; when a file is no sound safetensors file (see parse_header); when a tensor lies in two files; when the
  /// index names a file outside of the folder or one that is not there, or places a tensor in a file that lacks it.
  static Checkpoint open(const std::filesystem::path& folder);

  const nlohmann::json& config() const;
  const std::filesystem::path& folder() const;

  bool has(std::string_view name) const;
  /// Throws Error when there is no tensor of that name.
  const TensorInfo& info(const std::string& name) const;
  /// All tensors, sorted.
  std::vector<std::string> names() const;

  /// The tensor, read now (see read_tensor for the dtypes that are converted). Throws Error when there is none of that name, its file has
  /// changed, or, by default, it holds a NaN or an infinity.
  mx::array load(const std::string& name, CheckFinite check = CheckFinite::yes) const;

  /// SHA-256 in hexadecimal over all that a result can depend on: names and bytes of config.json, of the tokenizer's files
  /// and of the safetensors files. Reads all of them once (1–2 GB/s) and remembers the answer.
  std::string fingerprint() const;
  /// Bytes of all tensors as stored.
  std::uint64_t bytes() const;

 private:
  struct State;
  explicit Checkpoint(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

/// Names of the tokenizer's files that may lie in a model folder: what fingerprint() covers and a quantized copy carries along.
const std::vector<std::string>& tokenizer_files();

}  // namespace lquant::checkpoint
