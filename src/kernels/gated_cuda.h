#pragma once

#include <mlx/array.h>

#include "kernels/activation.h"

// gated() as a CUDA kernel each way, for gated.cpp. Of MLX's operations it takes seven forward, and f32 copies of gate and up are kept for the
// backward pass.
namespace lquant::kernels::cuda {

/// activation(gate) · up, differentiable; both of one shape and float dtype. Only where cuda_kernels().
mx::array gated(const mx::array& gate, const mx::array& up, Activation activation);

}  // namespace lquant::kernels::cuda
