#pragma once

#include <string>

#include "model/family/config.h"
#include "model/family/decoder.h"
#include "model/imports.h"
#include "model/ops/gated_delta.h"

// What hybrids of attention and gated delta nets have in common.
namespace lquant::model::family {

/// A gated delta net of the sizes that linear_num_key_heads and its like say, over `hidden` features, without names.
struct DeltaSizes {
  int key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0, taps = 0;

  static DeltaSizes read(const Config& config);
  int keys() const { return key_heads * key_dim; }
  int values() const { return value_heads * value_dim; }
  /// The op with its heads and, below this prefix, its parameters a_log and dt_bias.
  GatedDelta op(const std::string& path) const;
  /// Taps of so many channels, and the row for them as torch has them, [channels, 1, taps].
  ParameterSpec taps_of(const std::string& name, int channels, Imports& imports) const;
};

/// A net with a decay for each key channel (Kimi delta attention, arXiv 2510.26692) at this whole path, with q_proj, k_proj, v_proj, b_proj, o_norm
/// and o_proj. The family adds the taps, and the linears of the gate and the decays, inputs 3 and 5.
GatedDelta channel_net(const Layer& layer, const std::string& path, int hidden, const DeltaSizes& sizes, float eps);

}  // namespace lquant::model::family
