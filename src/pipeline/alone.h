#pragma once

#include <functional>
#include <string>
#include <vector>

#include "evaluate/quality.h"
#include "model/model.h"

namespace lquant::pipeline {

namespace mx = mlx::core;

/// What is replaced at one time while the rest of the model stays as it is: one linear, or all of a block's.
struct AlonePart {
  std::string name;  ///< unlike all others
  int block = -1;    ///< that the linears belong to; −1: an embedding or the head
  std::vector<const model::LinearSpec*> linears;
};

struct AloneRun {
  std::vector<AlonePart> parts;
  /// The weight that takes the place of `weight`, of its shape.
  std::function<mx::array(const AlonePart& part, const model::LinearSpec& linear, const mx::array& weight)> replaced;
  /// The divergence of the model with the part replaced from the model itself.
  std::function<void(const AlonePart& part, const evaluate::Quality& quality)> done;
  /// Parts that are not to be measured (say, that an earlier process has measured); none by default.
  std::function<bool(const AlonePart& part)> skip = nullptr;
  /// Told of the inputs of the model's own linears: of the head's (by the embedding's path when tied) and of blocks' later passes before anything is
  /// measured, of a block's first before the block's parts are.
  const model::BatchObserver* observer = nullptr;
  /// Called when a block's parts are done.
  std::function<void(int block)> after_block = nullptr;
};

/// Replaces each part alone and takes the divergence on `batches`. What enters a block is the same for all of its parts, so that the whole costs half
/// of (parts × blocks) passes of a block. Of the model one block is in memory at a time, of activations those of all batches a few times. Parts are
/// measured in this order: embedding, that of positions, head, blocks.
void measure_alone(const model::Model& model, const std::vector<calibration::Batch>& batches, const AloneRun& run);

}  // namespace lquant::pipeline
