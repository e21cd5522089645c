#pragma once

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "model/family/config.h"
#include "model/imports.h"
#include "model/ops/mamba.h"
#include "model/ops/mamba2.h"

// What families with Mamba's mixers have in common.
namespace lquant::model::family {

/// "time_step_limit", two numbers of which the second may be Infinity. Where config.json has none, `otherwise`, which is settled when mlx_lm has no
/// such default.
std::pair<double, double> time_step_limit(const Config& config, std::pair<double, double> otherwise, bool settle = false);

inline constexpr std::pair<double, double> kNoTimeLimit{0, std::numeric_limits<double>::infinity()};

struct Mamba2Sizes {
  int hidden = 0, heads = 0, head_dim = 0, groups = 1, state = 0, taps = 0;
  std::pair<double, double> limits = kNoTimeLimit;
  bool input_bias = false, taps_bias = false, output_bias = false;

  int inner() const { return heads * head_dim; }
  int convolved() const { return inner() + 2 * groups * state; }
};

/// The mixer below `path` ("model.layers.0.mamba."), without a norm. Adds the row for its taps. Fails when heads cannot be cut into groups.
Mamba2 mamba2_mixer(int block, const std::string& path, const Mamba2Sizes& sizes, Imports& imports);

struct MambaSizes {
  int hidden = 0, inner = 0, rank = 0, state = 0, taps = 0;
  bool bias = false, taps_bias = false;
};

/// The mixer below `path`, without norms, under the names that mlx_lm and Hugging Face share. Adds the row for its taps.
Mamba mamba_mixer(int block, const std::string& path, const MambaSizes& sizes, Imports& imports);

/// dt's rank: a count, or "auto", a sixteenth of the hidden size.
int time_step_rank(const Config& config, const char* key, int hidden);

/// What each layer is, "attention" or "mamba": the list of this name, in which transformers writes "full_attention" and "linear_attention" for what
/// mlx_lm calls "attention" and "mamba"; these are settled.
std::vector<std::string> layer_kinds(const Config& config, const char* key, int layers);

}  // namespace lquant::model::family
