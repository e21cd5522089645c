#pragma once

#include <mlx/array.h>

#include <optional>

#include "kernels/attention.h"

// The two ways attention() is computed, with its contract but without its checks; tests compare them.
namespace lquant::kernels {

/// MLX's own ops: any device. Differentiable; where MLX has no fused kernel the score matrix is held whole.
mx::array attention_mlx(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args,
                        const std::optional<mx::array>& segments, const std::optional<mx::array>& sinks = std::nullopt);

/// Blockwise on the CPU, linear memory (x86-64 Linux builds only). f32 or bf16, no empty dimension.
mx::array attention_cpu(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args,
                        const std::optional<mx::array>& segments, const std::optional<mx::array>& sinks = std::nullopt);

}  // namespace lquant::kernels
