#pragma once

#include <mlx/array.h>

#include <functional>
#include <optional>
#include <vector>

#include "model/block.h"
#include "model/model.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// All calibration rows on their way through the model, halted before each stage of a block (model/block.h). Where blocks run more than once, what
/// they read in all passes must be known before they are quantized. So the batches come in as many equal parts (Rows::in_passes), one for each pass,
/// and all go through a block together; a later pass begins with what the full-precision model has there.
/// Behind a block whose hidden states are not all finite it throws Error that names the block.
class Walk {
 public:
  /// Embeds the batches with `tensors`.
  Walk(const model::ModelSpec& spec, const std::vector<mx::array>& ids, const std::vector<mx::array>& segments, const model::Tensors& tensors,
       const model::Formats& formats, mx::Dtype dtype);

  std::size_t batches() const { return at_.size(); }
  /// The run of a block that a batch goes through.
  model::Visit visit(std::size_t batch, int block) const { return {block, static_cast<int>(batch * spec_->passes / at_.size())}; }
  /// Whether a batch has come to the model's end behind the last block.
  bool ends(std::size_t batch) const { return visit(batch, 0).pass + 1 == spec_->passes; }
  /// Takes the batches of later passes to where these begin; `load` gives a block's tensors, dense.
  void reach_passes(const std::function<model::Tensors(int block)>& load);
  /// Begins later passes where another walk does.
  void take_passes(const Walk& other);
  /// How many stages this block has.
  int stages(int block) const { return model::stages(spec_->blocks[block]); }
  /// Brings one batch from the stage before to this one; the observer is told of the linears that come next. Evaluated.
  void advance(std::size_t batch, int block, int stage, const model::Tensors& tensors, const model::Formats& formats,
               const model::Observer* observer);
  /// From the last stage out of the block.
  void leave(std::size_t batch, int block, const model::Tensors& tensors, const model::Formats& formats);
  /// A whole block at once.
  void pass(int block, const model::Tensors& tensors, const model::Formats& formats);
  /// Hidden states [B, T, H] between blocks; at a step's first stage those that the steps before gave.
  const mx::array& states(std::size_t batch) const { return at_[batch].residual; }

 private:
  model::Context context_of(std::size_t batch) const;

  const model::ModelSpec* spec_;  // a pointer, so that walks can be assigned
  std::vector<mx::array> segments_;
  std::vector<model::Halted> at_;
};

}  // namespace lquant::pipeline
