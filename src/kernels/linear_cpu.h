#pragma once

#include <mlx/array.h>

#include <optional>
#include <vector>

#include "kernels/linear.h"

// What linear.cpp hands to the CPU after its checks; contracts as in linear.h.
namespace lquant::kernels::cpu {

std::vector<mx::array> linears(const mx::array& x, const std::vector<LinearWeight>& weights, const std::optional<mx::array>& residual);
mx::array grouped_linear(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets);

}  // namespace lquant::kernels::cpu
