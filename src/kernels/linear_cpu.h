#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "kernels/linear.h"

// What linear.cpp hands to the CPU after its checks; contracts as in linear.h.
namespace lquant::kernels::cpu {

std::vector<mx::array> linears(const mx::array& x, const std::vector<LinearWeight>& weights, const std::optional<mx::array>& residual);
mx::array grouped_linear(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets);

/// The name of the op that makes the gradient of grouped_linear's weight of (dY, x, offsets).
inline constexpr const char* kGroupedWeightGradient = "grouped_linear_dw";
SquareSums square_sums(const GroupedGradient& gradient, int group, int step);

}  // namespace lquant::kernels::cpu
