#pragma once

#include <mlx/array.h>

#include <limits>

#include "kernels/activation.h"

namespace lquant::kernels {

namespace mx = mlx::core;

/// activation(gate) · up, equal shapes and dtypes (f32, bf16 or f16), one rounding at the end (GLU variants, arXiv 2002.05202).
/// Differentiable for both. Throws std::invalid_argument when shapes or dtypes disagree.
mx::array gated(const mx::array& gate, const mx::array& up, Activation activation);

/// The same on one tensor [..., 2·I] whose first half is the gate (Phi-3's fused gate_up); result [..., I].
mx::array gated_fused(const mx::array& gate_up, Activation activation);

/// A gated silu between limits: a · (clamp(up, −limit, limit) + shift), where a = g·σ(alpha·g) of g = min(gate, limit), or, when
/// `limits_activated`, a = min(gate·σ(alpha·gate), limit). gpt_oss: {1.702, 7, 1}; step3p5: limits_activated, without shift.
struct ClampedGate {
  float alpha = 1;
  float limit = std::numeric_limits<float>::infinity();  ///< above 0
  float shift = 0;
  bool limits_activated = false;
};

/// That, with shapes, dtypes, roundings and errors as of gated(); std::invalid_argument for a limit that is not above 0, too. Differentiable for
/// both; what lies at or beyond a limit has the gradient 0.
mx::array clamped_gated(const mx::array& gate, const mx::array& up, const ClampedGate& clamp);

/// SiTU (Kimi K3): beta · tanh(gate / beta) · σ(gate) · u, where u is up, or linear · tanh(up / linear) when `linear` is above 0.
struct Situ {
  float beta = 1;
  float linear = 0;
};

/// That, with shapes, dtypes, roundings and errors as of gated(); std::invalid_argument for a beta of 0, too. Differentiable for both. On MLX's ops.
mx::array situ_gated(const mx::array& gate, const mx::array& up, const Situ& situ);

}  // namespace lquant::kernels
