#pragma once

#include <mlx/array.h>

namespace lquant::kernels {

namespace mx = mlx::core;

/// silu: g·σ(g); gelu: g·Φ(g); gelu_tanh: its tanh form (arXiv 1606.08415); relu: max(g, 0); relu2: max(g, 0)².
enum class Activation { silu, gelu, gelu_tanh, relu, relu2 };

/// activation(gate) · up, equal shapes and dtypes (f32 or bf16), one rounding at the end (GLU variants, arXiv 2002.05202).
/// Differentiable for both. Throws std::invalid_argument when shapes or dtypes disagree.
mx::array gated(const mx::array& gate, const mx::array& up, Activation activation);

/// The same on one tensor [..., 2·I] whose first half is the gate (Phi-3's fused gate_up); result [..., I].
mx::array gated_fused(const mx::array& gate_up, Activation activation);

}  // namespace lquant::kernels
