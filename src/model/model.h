#pragma once

#include <mlx/array.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/foreign.h"
#include "model/forward.h"
#include "model/spec.h"
#include "model/tensors.h"

namespace lquant::model {

/// What a user gives as a model: a folder, or a GGUF file of an architecture that a family has a row for. Throws Error as Checkpoint::open does.
checkpoint::Checkpoint open_checkpoint(const std::filesystem::path& path);

/// A tensor that an output has byte for byte.
struct KeptTensor {
  std::string name, as;  ///< in the checkpoint, in an output
  std::string what;      ///< "the vision tower"
};

/// A checkpoint understood: its architecture, the number format of each linear, and loading by parts. Holds no tensor; cheap to copy.
class Model {
 public:
  /// Reads config.json and the tensors' headers; checks that every tensor of the architecture is there and has its shape, and that every tensor that
  /// is there is the architecture's, one that it keeps (Imports::kept) or one that it leaves out for a stated reason (ModelSpec::left_out).
  /// Formats come from the "quantization" block (global, per path, or false) and, where it says nothing, from the shapes of codes and
  /// scales, as mlx_lm does. A linear that another tool has packed (foreign.h) is a dense one, decoded when it is loaded. Throws Error naming the
  /// tensor: missing, of another shape, in a format that cannot be, or unknown.
  static Model open(const checkpoint::Checkpoint& checkpoint);

  const ModelSpec& spec() const { return spec_; }
  const Formats& formats() const { return formats_; }
  const checkpoint::Checkpoint& checkpoint() const { return checkpoint_; }

  /// The dtype of the checkpoint's own float tensors, and the one to compute in on the default device: the same on a GPU;
  /// on the CPU, whose kernels know bf16 and f32, f16 becomes f32.
  mx::Dtype stored_dtype() const { return stored_dtype_; }
  mx::Dtype compute_dtype() const;

  /// Every float tensor in that dtype, but those that keep their own (keeps_dtype).
  Tensors cast(Tensors tensors, mx::Dtype dtype) const;

  /// Tensors by the names of tensors.h, read now, float ones cast lazily to `dtype` (default: compute_dtype()). Experts that
  /// the checkpoint keeps one by one arrive stacked. What another tool has packed is decoded and rounded to stored_dtype() first.
  Tensors load_block(int i, std::optional<mx::Dtype> dtype = std::nullopt) const;
  Tensors load_embedding(std::optional<mx::Dtype> dtype = std::nullopt) const;
  /// The final norm and what the head reads: its own tensors, or the tied embedding's.
  Tensors load_final(std::optional<mx::Dtype> dtype = std::nullopt) const;
  Tensors load_all(std::optional<mx::Dtype> dtype = std::nullopt) const;
  /// Those of these names alone.
  Tensors load(const std::vector<std::string>& names, std::optional<mx::Dtype> dtype = std::nullopt) const;

  /// Names that load_block(i) gives, and those of load_embedding and load_final together.
  std::vector<std::string> block_names(int i) const;
  std::vector<std::string> outer_names() const;
  /// Tensors of the checkpoint that an output has as they are, sorted.
  const std::vector<KeptTensor>& kept() const { return kept_; }
  /// Their bytes, by what they are.
  std::map<std::string, std::int64_t> kept_bytes() const;
  /// Tensors of the checkpoint that the architecture has no use for, sorted: each is left out for a reason (left_out).
  const std::vector<std::string>& unused_names() const { return unused_; }
  /// The same by the reasons: those of spec().left_out, and what stands beside the linears that another tool has packed.
  std::map<std::string, std::vector<std::string>> left_out() const;

 private:
  explicit Model(checkpoint::Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}
  std::optional<Source> source_of(const std::string& name) const;
  const std::string* why_left_out(const std::string& name) const;
  mx::Dtype dtype_of_numbers() const;
  void account();
  void refuse_unknown() const;

  checkpoint::Checkpoint checkpoint_;
  ModelSpec spec_;
  Formats formats_;
  std::vector<KeptTensor> kept_;
  std::unordered_set<std::string> own_dtype_;  ///< names of tensors that keep theirs
  std::vector<std::string> unused_;
  std::shared_ptr<const ForeignLinears> foreign_;  ///< null where no other tool has quantized the checkpoint
  mx::Dtype stored_dtype_ = mx::bfloat16;
};

/// Of some of a model's tensors, every packed linear made dense in the stored dtype: what a model that is quantized itself (to 8 bits, say) stands
/// for.
Tensors dense_tensors(const Model& model, Tensors tensors);

/// Every float tensor in that dtype, but those of these names.
Tensors cast(Tensors tensors, mx::Dtype dtype, const std::unordered_set<std::string>& except = {});

/// Tensor names of one linear (".weight", ".scales", ".biases" as its format asks, ".bias" when it has one).
std::vector<std::string> tensor_names(const LinearSpec& linear, const Formats& formats);

}  // namespace lquant::model
