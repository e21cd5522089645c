#pragma once

#include <mlx/array.h>

#include <optional>

namespace lquant::kernels {

namespace mx = mlx::core;

/// A causal convolution of each channel by itself: y_t = Σ_j taps[c, j] · x[t − K + 1 + j], where what stands before a text's first token is 0. x
/// [B, T, C] and taps [C, K], f32, bf16 or f16; segments int32 [B, T]: where the number differs from that of the token before, a text begins. Result
/// as x, summed in f32 and rounded once. Gradients flow to x and the taps. Throws std::invalid_argument when shapes or dtypes disagree.
mx::array causal_conv(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments = std::nullopt);

}  // namespace lquant::kernels
