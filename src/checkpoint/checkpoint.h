#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_set.h"
#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint {

namespace gguf {
struct Architecture;
}

/// Whether load() refuses a floating-point tensor with a NaN or an infinity in it.
enum class CheckFinite { no, yes };

/// A model: config.json and the tensors of a folder's safetensors files, or of a GGUF file seen as such a folder (gguf/source.h), none of them in
/// memory until asked for. A cheap handle; copies share the open files. All functions are safe to call from many threads.
class Checkpoint {
 public:
  /// Opens config.json and every model*.safetensors, and whatever else model.safetensors.index.json names. Tensors that the
  /// index does not name are kept, as mlx_lm keeps them; an index none of whose files is there, beside a whole set of others, was left
  /// over from another packing and is ignored.
  /// Throws Error, naming the file and the mend, when the folder, its config or its tensors are missing; when a file is no sound safetensors file
  /// (see parse_header); when a tensor lies in two files; when the index names a file outside of the folder or one of those that it names is not
  /// there, or places a tensor in a file that lacks it; when any file that a command may read or copy is a link that leads out of the folder, or no
  /// regular file (see find_file).
  ///
  /// A GGUF file is refused too: see below, and model::open_checkpoint for whatever a user may give as a model.
  static Checkpoint open(const std::filesystem::path& folder);
  /// The same, and a path that ends in ".gguf" is read as such a file, or as the pieces of a split one of which it is any, when its architecture is
  /// one of these, which are of no use once it is open. Throws Error as gguf::Source::open does.
  static Checkpoint open(const std::filesystem::path& path, const std::vector<gguf::Architecture>& architectures);

  const nlohmann::json& config() const;
  /// The folder or the file, as given to open(): for messages.
  const std::filesystem::path& folder() const;
  /// What to call the model: the folder's name (in the hub's cache the repository's), or the GGUF file's without its ending and the number of its
  /// piece.
  std::string name() const;
  /// The small files: the tokenizer's, config.json, generation_config.json. Of a GGUF file they are rebuilt in memory.
  const FileSet& files() const;

  bool has(std::string_view name) const;
  /// Throws Error when there is no tensor of that name.
  const TensorInfo& info(const std::string& name) const;
  /// All tensors, sorted.
  std::vector<std::string> names() const;

  /// The tensor, read now (see read_tensor, and gguf::Source, for the dtypes that are converted). Throws Error when there is none of that name, its
  /// file has changed, or, by default, it holds a NaN or an infinity.
  mx::array load(const std::string& name, CheckFinite check = CheckFinite::yes) const;

  /// The open file in which the tensor's bytes lie (info().begin, info().end). A tensor of a GGUF file has none: std::invalid_argument.
  const File& file_of(const std::string& name) const;

  /// SHA-256 in hexadecimal over all that a result can depend on: names and bytes of config.json, of the tokenizer's files
  /// and of the safetensors files, or of the GGUF file's pieces. Reads all of them once (1–2 GB/s) and remembers the answer.
  std::string fingerprint() const;
  /// Bytes of all tensors as stored.
  std::uint64_t bytes() const;

 private:
  struct State;
  explicit Checkpoint(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

/// A tokenizer.json of 262,144 tokens has 33 MB; what is 15 times that is none.
constexpr std::size_t kLargestCopied = std::size_t{1} << 29;

/// Names of the files that a quantized copy carries along as they are: the tokenizer's, generation_config.json, and what prepares pictures, sounds
/// and films for the towers of a model that has such.
const std::vector<std::string>& copied_files();
/// Throws Error naming a file among them that says it is JSON and is not, is larger than kLargestCopied, or is no file of the folder (find_file).
void check_copied_files(const FileSet& files);

/// Names of the tokenizer's files that may lie in a model folder: what fingerprint() covers and a quantized copy carries along.
const std::vector<std::string>& tokenizer_files();

}  // namespace lquant::checkpoint
