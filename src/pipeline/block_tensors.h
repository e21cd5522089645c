#pragma once

#include <mlx/array.h>

#include <vector>

#include "model/model.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// The full-precision tensors of a block, dense. Routed experts, nearly all of a mixture, are read when they are asked for and not kept: a block is
/// gone through stage by stage, and no stage needs all of them.
class BlockTensors {
 public:
  /// Reads all but the experts' weights. The model outlives it. Throws what loading throws, here and below.
  BlockTensors(const model::Model& model, int block);

  int block() const { return block_; }
  /// What is kept, in the stored dtype and in the compute dtype.
  const model::Tensors& stored() const { return stored_; }
  const model::Tensors& full() const { return full_; }
  /// A weight in the stored dtype; that of routed experts is read each time.
  mx::array weight(const model::LinearSpec& linear) const;
  /// The linears whose weights are read and which are applied between a stage and the one before it (model::applied).
  std::vector<const model::LinearSpec*> read_before(int stage) const;
  /// full() and the weights of these.
  model::Tensors full_with(const std::vector<const model::LinearSpec*>& linears) const;
  /// The whole block.
  model::Tensors all_stored() const;

 private:
  const model::Model& model_;
  int block_;
  model::Tensors stored_, full_;
};

}  // namespace lquant::pipeline
