#pragma once

#include <mlx/array.h>

#include "kernels/activation.h"

// gated() and activate() as a CUDA kernel each way, for gated.cpp and activation.cpp. Of MLX's operations a gate takes seven forward, and f32 copies
// of gate and up are kept for the backward pass.
namespace lquant::kernels::cuda {

/// activation(gate) · up, differentiable; both of one shape and float dtype. Only where cuda_kernels().
mx::array gated(const mx::array& gate, const mx::array& up, Activation activation);

/// activation(x), differentiable; x float with an axis. Only where cuda_kernels().
mx::array activate(const mx::array& x, Activation activation);

}  // namespace lquant::kernels::cuda
