#pragma once

#include <utility>

#include "kernels/elementwise_cpu.h"

// The CPU form of ssm.h's selective scan. Internal to this folder.
namespace lquant::kernels::cpu {

/// As the public function, with a [N, C], the state in front `first` [B, N, C] and the one behind likewise; keeps [B, T]: what of a token's state in
/// front goes on (0 or 1).
std::pair<mx::array, mx::array> selective_scan(const mx::array& x, const mx::array& dt, const mx::array& a, const mx::array& b, const mx::array& c,
                                               const mx::array& keeps, const mx::array& first);

}  // namespace lquant::kernels::cpu
