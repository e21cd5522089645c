#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "calibration/examples.h"

namespace lquant::calibration {

namespace mx = mlx::core;

/// The examples of one optimizer step packed into rows: several short ones share a row, kept apart by `segments`, so that
/// hardly a token is padding. All arrays are [R, L].
struct Batch {
  mx::array ids;        ///< int32
  mx::array segments;   ///< int32: which example of the row; −1 for padding
  mx::array mask;       ///< f32: 1 where the prediction counts
  mx::array targets;    ///< int32: the next token (0 where the mask of next tokens is 0)
  mx::array next_mask;  ///< f32: 1 where a next token exists and counts (perplexity)
  int rows() const { return ids.shape(0); }
  int length() const { return ids.shape(1); }
  /// Number of positions with mask 1.
  double tokens = 0;
  bool several = true;  ///< whether a row may hold more than one example
  /// The segments for a forward pass. On a device without our kernels none when each row holds one example: what stands before a token is then its
  /// own text, padding comes last, and attention without a mask is several times as fast there.
  std::optional<mx::array> borders() const;
};

/// Packs examples into rows of at most `max_tokens` (best fit, longest first; ties by order), trimmed to the longest row.
/// `mask_prompt` takes the prompts out of the loss.
Batch pack(const std::vector<Example>& examples, int max_tokens, bool mask_prompt);

/// Consecutive groups of `batch_size` examples, packed; the last, smaller group is kept.
std::vector<Batch> make_batches(const std::vector<Example>& examples, int batch_size, int max_tokens, bool mask_prompt);

/// Rows begin … end of a batch (a part small enough to be in memory at once); of all of them the batch itself.
Batch slice_rows(const Batch& batch, int begin, int end);

/// One long text as rows of `length` tokens with the token after each as its target, as perplexity is usually taken:
/// rows = min(max_tokens, ids − 1) / length. Throws Error when there is not one full row.
std::vector<Batch> text_rows(const std::vector<std::int32_t>& ids, int length, int batch_size, std::int64_t max_tokens);

}  // namespace lquant::calibration
