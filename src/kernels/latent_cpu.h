#pragma once

#include "kernels/latent.h"
#include "kernels/primitive.h"

// What latent.cpp and its CPU loops share: the fixed-point format and the functions' CPU forms.
namespace lquant::kernels {

/// One code in a latent's units. A latent x stands for the value (x − one/2)/one, so that x >> (16 − bits) rounds it to the nearest
/// code and all of 0 … 65535 are codes that exist.
constexpr int latent_one(int bits) { return 1 << (16 - bits); }
inline constexpr int kLatentMax = 65535;
/// Below it a group's gradient counts as none; smaller than any gradient that matters, larger than f32's subnormals.
inline constexpr float kLatentTiny = 1e-30f;

namespace latent_cpu {

inline bool serves(mx::Dtype dtype) {
#ifdef LQUANT_ONEDNN
  return cpu_kernels() && (dtype == mx::float32 || dtype == mx::bfloat16);
#else
  return false;
#endif
}

mx::array weight(const mx::array& latents, const mx::array& scales, const mx::array& biases, int bits, int group_size);
std::pair<mx::array, mx::array> gradients(const mx::array& dw, const mx::array& latents, int bits, int group_size);
std::pair<mx::array, mx::array> step(const mx::array& latents, const mx::array& dw, const mx::array& scales, const mx::array& v,
                                     const LatentStep& step, int bits, int group_size);

}  // namespace latent_cpu
}  // namespace lquant::kernels
