#pragma once

#include <mlx/array.h>

#include "kernels/activation.h"

// What activations alone and gated ones share. Internal to this folder.
namespace lquant::kernels {

/// activation(g) on MLX's ops, g f32.
mx::array activate_mlx(const mx::array& g, Activation activation);

/// g·σ(factor·g) likewise.
mx::array swish_mlx(const mx::array& g, float factor);

}  // namespace lquant::kernels
