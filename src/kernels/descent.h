#pragma once

#include <mlx/array.h>

#include <utility>
#include <vector>

// What quantize/student.h does to a trained matrix, in one CUDA kernel each instead of dozens of MLX's operations: there a step of a model
// with 200 linears was 10,000 launches. The formulas are those of student.cpp, docs/methods/dwq.md.
namespace lquant::kernels {

namespace mx = mlx::core;

/// A matrix [..., K] in training. latents u16 [..., K] (latent.h); the rest f32 [..., K / group_size].
struct TrainedMatrix {
  mx::array latents;
  mx::array s0, b0, pivot;            ///< scales and biases at the start, each group's mean code
  mx::array a, c, ma, va, mc, vc, v;  ///< what is trained, Adam's moments, the latents' mean squares
  float spread;                       ///< r of the formulas
  int bits, group_size;
};

/// Adam's usual β1; a short memory for the second moment, since a run has hundreds of steps, not millions. descent.cu has the same.
inline constexpr float kBeta1 = 0.9f, kBeta2 = 0.95f;

struct DescentRates {
  float scales = 0;  ///< Adam's rate of scales and biases
  float codes = 0;   ///< the latents' step, in codes
  int step = 1;      ///< counted from 1
};

/// Whether the default device has these kernels: CUDA and groups of 32, 64 or 128.
bool fused_descent(int group_size);

/// What the forward pass sees, [..., K] of `dtype`: equal to latent_weight of the scales and biases as they will be stored in it.
mx::array descent_weight(const TrainedMatrix& matrix, mx::Dtype dtype);

/// latent_gradients, which calls it, as one kernel.
std::pair<mx::array, mx::array> descent_gradients(const mx::array& dw, const mx::array& latents, int bits, int group_size);

/// One step from the gradient dw [..., K] (f32, bf16, f16) of the dense weight: scales, biases and latents.
TrainedMatrix descend(const TrainedMatrix& matrix, const mx::array& dw, const DescentRates& rates);

/// One step of scales and biases alone from the same, the codes as they are.
TrainedMatrix descend_scales(const TrainedMatrix& matrix, const mx::array& dw, const DescentRates& rates);

/// The same from the gradients of scales and biases, f32 [..., K / group_size].
TrainedMatrix descend_scales(const TrainedMatrix& matrix, const mx::array& ds, const mx::array& db, const DescentRates& rates);

}  // namespace lquant::kernels
