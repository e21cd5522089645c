#pragma once

#include <mlx/array.h>

#include <optional>
#include <utility>

// The ways in which gated_delta.h can be computed, for tests and measurements.
namespace lquant::kernels {

namespace mx = mlx::core;

/// On MLX's operations, for any device.
std::pair<mx::array, mx::array> gated_delta_mlx(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                                const mx::array& beta, const std::optional<mx::array>& segments,
                                                const std::optional<mx::array>& state);

/// In loops and products of oneDNN's, with a gradient of its own (x86-64 Linux builds only). f32 or bf16, a decay for each head, no empty dimension.
std::pair<mx::array, mx::array> gated_delta_cpu(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                                const mx::array& beta, const std::optional<mx::array>& segments,
                                                const std::optional<mx::array>& state);

/// In loops, with a gradient of its own (x86-64 Linux builds only). A decay for each key channel, no empty dimension.
std::pair<mx::array, mx::array> gated_delta_channels_cpu(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                                         const mx::array& beta, const std::optional<mx::array>& segments,
                                                         const std::optional<mx::array>& state);

}  // namespace lquant::kernels
