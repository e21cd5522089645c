#pragma once

#include <mlx/array.h>

#include "model/op.h"

namespace lquant::model {

/// A causal convolution of each channel by itself over the tokens of its own text: y_t = Σ_j w[c, j] · x[t − taps + 1 + j], with zeros before the
/// text's first token. x [B, T, channels] → [B, T, channels], summed in f32 and rounded once. `taps` [channels, taps, 1]; the last
/// tap is the token's own. A cache keeps the last taps − 1 inputs under the parameter's name.
mx::array convolved(const Scope& scope, const ParameterSpec& taps, const mx::array& x);

}  // namespace lquant::model
