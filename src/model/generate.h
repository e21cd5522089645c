#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/forward.h"

namespace lquant::model {

/// As mlx_lm's make_sampler: temperature 0 takes the likeliest token; otherwise the filters top_p, min_p, top_k (0: off each)
/// act on the untempered distribution in that order, then one token is drawn at the temperature.
struct SampleOptions {
  int max_tokens = 256;
  float temperature = 0;
  float top_p = 0;
  float min_p = 0;
  int top_k = 0;
  std::uint64_t seed = 0;
  /// Tokens that end a row; the row keeps its stop token.
  std::vector<int> stop = {};
  /// Prompt tokens per forward pass: bounds the memory of a long prompt.
  int prefill_step = 512;
};

/// Called with (row, token) as tokens are made; returns false to end that row.
using TokenCallback = std::function<bool(int row, int token)>;

/// Continues each prompt (not empty) by up to max_tokens; returns the new tokens alone. Rows advance together: longer prompts
/// are fed while shorter ones already sample, so no padding is needed. A row's draws depend on (seed, row) alone, not on the
/// others. `tensors` should be dense (see densify). Throws Error for an empty prompt or ids outside the vocabulary.
std::vector<std::vector<int>> sample(const ModelSpec& spec, const Tensors& tensors, const Formats& formats, mx::Dtype dtype,
                                     const std::vector<std::vector<int>>& prompts, const SampleOptions& options,
                                     const TokenCallback& callback = nullptr);

/// One draw from logits[0 … vocab) (finite) with `uniform` in [0, 1).
int sample_token(const float* logits, int vocab, const SampleOptions& options, double uniform);

}  // namespace lquant::model
