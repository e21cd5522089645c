#pragma once

#include <mlx/array.h>

#include "kernels/head_loss.h"

// The divergence of rows of logits with its gradient as one CUDA kernel, for head_loss.cpp: MLX's operations read and write a chunk's logits
// some twenty times.
namespace lquant::kernels {

/// Whether the default device has it.
bool fused_head_rows();

struct HeadRows {
  mx::array loss;    ///< f32 [T]: mask · KL(teacher ‖ student)
  mx::array slopes;  ///< of Σ loss by `student`, [T, V] in its dtype; empty when it was not asked for
};

/// student and teacher [T, V]: products with the heads (f32, bf16, f16), biases added, of which `args` makes logits; mask f32 [T].
HeadRows head_rows(const mx::array& student, const mx::array& teacher, const mx::array& mask, const HeadLossArgs& args, bool needs_gradient);

}  // namespace lquant::kernels
