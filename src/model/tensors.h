#pragma once

#include <mlx/array.h>

#include <string>
#include <unordered_map>

#include "codec/format.h"

namespace lquant::model {

namespace mx = mlx::core;

/// Tensors by their checkpoint name, e.g. "model.layers.0.self_attn.q_proj.weight"; of a quantized linear there are
/// ".weight" (u32 codes), ".scales" and, for affine, ".biases". Forward passes read from such a map and nothing else:
/// to train, put traced arrays in it.
using Tensors = std::unordered_map<std::string, mx::array>;

/// Formats by linear path ("model.layers.0.self_attn.q_proj"), of the quantized ones.
using Formats = std::unordered_map<std::string, codec::Format>;

}  // namespace lquant::model
