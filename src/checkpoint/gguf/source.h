#pragma once

#include <mlx/array.h>

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file_set.h"
#include "checkpoint/gguf/load.h"
#include "checkpoint/gguf/metadata.h"
#include "checkpoint/gguf/names.h"
#include "checkpoint/gguf/pieces.h"
#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {

/// A GGUF file (or the pieces of a split one) seen as a model folder of Hugging Face's form: its tensors under the names that transformers
/// gives them, its config.json, its tokenizer's files. What Checkpoint is made of when it is given such a file.
///
/// Matrices are loaded in one dtype: float32 when all in the file are F32, float16 when all that are not F32 are F16, bfloat16
/// otherwise (quantized types say no more than that holds). Vectors (norms, biases) keep what they are stored in; so F32 norms beside quantized
/// matrices do not make a float32 model.
class Source {
 public:
  /// A file of one of these architectures, which are of no use once it is open. Throws Error, naming the file and what to do: see open_pieces and
  /// parse_header; an architecture that is not among them or a tokenizer that lquant lacks; a tensor that the architecture does not have; metadata
  /// that are missing or change what no supported model changes.
  static Source open(const std::filesystem::path& path, const std::vector<Architecture>& architectures);

  const nlohmann::json& config() const { return config_; }
  const Tensors& tensors() const { return tensors_; }
  const FileSet& files() const { return files_; }
  const std::vector<Piece>& pieces() const { return pieces_; }

  /// Reads the named tensor now, in the dtype of its TensorInfo. `name` must be there.
  mx::array read(const std::string& name) const { return read(name, tensors_.find(name)->second.dtype); }
  /// The same in another float dtype. In float32 the values are, bit for bit, those of the `gguf` package's dequantize, put in Hugging Face's order.
  mx::array read(const std::string& name, mx::Dtype dtype) const;

 private:
  Source() = default;
  void map_tensors(const Architecture& architecture);
  struct Place {
    std::size_t piece = 0;
    Wanted wanted;
  };
  std::vector<Piece> pieces_;
  std::shared_ptr<const Metadata> metadata_;
  nlohmann::json config_;
  Tensors tensors_;
  std::map<std::string, Place, std::less<>> places_;
  FileSet files_;
};

}  // namespace lquant::checkpoint::gguf
