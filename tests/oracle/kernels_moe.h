#pragma once

#include <vector>

namespace lquant::oracle {

struct Routed {
  std::vector<int> order, offsets;
};
/// Choices sorted by expert, ties in their order, by collecting them expert after expert.
Routed sort_by_expert(const std::vector<int>& experts, int num_experts);

/// Row r = x[order[r] / k] of x [T, width].
std::vector<double> gather_rows(const std::vector<double>& x, const Routed& routed, int k, int width);

/// [T, width]: each sorted row, times its choice's weight, added to its token.
std::vector<double> combine_rows(const std::vector<double>& y, const std::vector<double>& weights, const Routed& routed, int k, int width);

}  // namespace lquant::oracle
