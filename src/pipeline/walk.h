#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "model/forward.h"
#include "model/model.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// All calibration rows on their way through the model, halted before each group of linears that read one input.
class Walk {
 public:
  /// Embeds the batches with `tensors`.
  Walk(const model::ModelSpec& spec, const std::vector<mx::array>& ids, const std::vector<mx::array>& segments, const model::Tensors& tensors,
       const model::Formats& formats, mx::Dtype dtype);

  /// Where a block is halted, in order.
  enum class Halt { attention_input, attention_output, mlp_input, mlp_output };
  static constexpr Halt kHalts[] = {Halt::attention_input, Halt::attention_output, Halt::mlp_input, Halt::mlp_output};

  std::size_t batches() const { return at_.size(); }
  /// Brings one batch from the halt before to this one; the observer is told of the linears that come next. Evaluated.
  void advance(std::size_t batch, int block, Halt halt, const model::Tensors& tensors, const model::Formats& formats,
               const model::Observer* observer);
  /// What the halted linears read: [B, T, K], of experts the sorted rows.
  const mx::array& input(std::size_t batch) const { return at_[batch].input; }
  /// From the last halt out of the block.
  void leave(std::size_t batch, int block, const model::Tensors& tensors, const model::Formats& formats);
  /// A whole block without halts.
  void pass(int block, const model::Tensors& tensors, const model::Formats& formats);
  /// Hidden states [B, T, H] between blocks.
  const mx::array& states(std::size_t batch) const { return at_[batch].residual; }

 private:
  const model::ModelSpec* spec_;  // a pointer, so that walks can be assigned
  std::vector<mx::array> segments_;
  std::vector<model::Cut> at_;
};

}  // namespace lquant::pipeline
