#pragma once

#include <mlx/array.h>

#include <utility>

// Codes that can be trained. Each weight keeps a latent: its code as a continuous number, of which the forward pass sees the
// nearest integer and to which the gradient passes straight through (Bengio et al., arXiv 1308.3432). A latent is 16 bits:
// the code in the upper `bits` of them, below it where between the code's two borders the weight lies (1/4096 of a code at 4 bits).
// Matrices are [..., K] with groups of `group_size` along K; scales and biases [..., K/group_size].
namespace lquant::kernels {

namespace mx = mlx::core;

/// The latents u16 [..., K] of weights whose codes (u8 [..., K]) are given: (w − bias)/scale, kept less than half a code from the
/// given one, so that the latents start with these codes and remember on which side of them the weight lies. A group whose scale is 0
/// gets its codes themselves.
mx::array make_latents(const mx::array& w, const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size);

/// The codes of latents, u8 [..., K].
mx::array latent_codes(const mx::array& latents, int bits);

/// Dequantized weights [..., K] in the dtype of scales and biases (f32, bf16, f16), equal to MLX's dequantize of those codes.
mx::array latent_weight(const mx::array& latents, const mx::array& scales, const mx::array& biases, int bits, int group_size);

/// From the gradient of the weights dw [..., K] (f32, bf16, f16): {Σ dw·q, Σ dw} over each group, f32 [..., K/group_size].
std::pair<mx::array, mx::array> latent_gradients(const mx::array& dw, const mx::array& latents, int bits, int group_size);

struct LatentStep {
  float rate;        ///< step, in codes, of a weight whose gradient is the group's root mean square
  float decay;       ///< of the running mean square, 0.95: v ← decay·v + (1 − decay)·mean(dw²)
  float correction;  ///< 1 − decay^t, which removes v's start at 0
};
/// One descent step of the latents, normalised per group (RMSProp with one second moment a group): the new latents and the
/// new mean squares v f32 [..., K/group_size].
std::pair<mx::array, mx::array> latent_step(const mx::array& latents, const mx::array& dw, const mx::array& scales, const mx::array& v,
                                            const LatentStep& step, int bits, int group_size);

}  // namespace lquant::kernels
