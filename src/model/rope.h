#pragma once

#include <mlx/array.h>

#include <nlohmann/json.hpp>
#include <vector>

namespace lquant::model {

namespace mx = mlx::core;

/// Rotary positions of one layer: the first 2·F features of a head turn by position · inv_freq[f].
struct RopeSpec {
  std::vector<float> inv_freq;  ///< F values
  float magnitude = 1;          ///< factor of cos and sin (YaRN, LongRoPE)
  bool interleaved = false;     ///< pairs (2f, 2f + 1) instead of (f, f + F)
  /// Dynamic NTK: beyond this many positions the base grows with the length; 0: it never does.
  int dynamic_from = 0;
  float dynamic_factor = 1, base = 10000;
};

/// What mlx_lm's rope_utils.initialize_rope makes of a "rope_scaling" block (null: none): default, linear, dynamic, llama3
/// (Llama 3.1), yarn (arXiv 2309.00071), longrope (arXiv 2402.13753; always the long factors), proportional, mrope (its text
/// part, which is the default). `dims` features are rotated; `max_positions` is max_position_embeddings or 0 when the
/// config has none. Throws Error for an unknown type or a missing field.
RopeSpec make_rope(int dims, double base, bool interleaved, const nlohmann::json& scaling, int max_positions);

/// The frequencies for sequences of `length` positions, f32 [F].
mx::array inverse_frequencies(const RopeSpec& rope, int length);

}  // namespace lquant::model
