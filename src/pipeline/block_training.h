#pragma once

#include "pipeline/block_run.h"
#include "quantize/blockwise.h"

namespace lquant::pipeline {

/// The training of each block of a run behind its quantization. What the outputs of each block are weighed by is found before the first one is
/// trained and kept in the run folder.
class BlockTraining {
 public:
  /// Both outlive it.
  BlockTraining(const quantize::BlockwiseOptions& options, BlockRun& run) : options_(options), run_(run) {}

  bool wanted() const { return options_.epochs > 0; }
  /// `tensors`: the block as it is written, packed; `dense`: its full-precision tensors with the same AWQ scales in them; `before`: the quantized
  /// model's walk before the block. The teacher's walk is behind it. Throws Interrupted.
  quantize::BlockwiseResult train(int block, const model::Tensors& dense, const Walk& before, model::Tensors& tensors);

 private:
  /// Whether nothing but the head stands behind the block, in every run of it.
  bool is_last(int block) const {
    const auto& spec = run_.model().spec();
    return spec.passes == 1 && block + 1 == static_cast<int>(spec.blocks.size());
  }
  quantize::OutputLoss loss_of(int block);

  const quantize::BlockwiseOptions& options_;
  BlockRun& run_;
};

}  // namespace lquant::pipeline
