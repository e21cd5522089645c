#pragma once

#include <mlx/array.h>

#include <functional>
#include <optional>
#include <vector>

#include "model/model.h"

namespace lquant::model {

/// Block-by-block running of a whole calibration set with one block's weights resident.
struct StreamOptions {
  std::optional<mx::Dtype> dtype = std::nullopt;           ///< to compute in; default: the model's compute_dtype()
  std::optional<mx::Dtype> boundary_dtype = std::nullopt;  ///< to keep activations in between blocks; default: the compute dtype
  /// int32 [B, T] per batch, or empty: as Context::segments.
  std::vector<mx::array> segments = {};
  const BatchObserver* observer = nullptr;
  /// Called when a block's tensors are loaded, for each of its runs, and before they are used; may replace them (say, by quantized ones) and their
  /// formats.
  std::function<void(int block, Tensors& tensors, Formats& formats)> before_block = nullptr;
  /// Called with the outputs of a run of a block (−1: the embedding), all evaluated; they are the inputs of the next one and may be changed.
  std::function<void(const Visit& visit, std::vector<mx::array>& activations)> after_block = nullptr;
};

/// ids int32 [B, T] per batch → hidden states [B, T, H] before the final norm, evaluated. At any moment: one block's tensors,
/// the activations of all batches once, and the work of one batch.
std::vector<mx::array> stream_blocks(const Model& model, const std::vector<mx::array>& ids, const StreamOptions& options = {});

}  // namespace lquant::model
