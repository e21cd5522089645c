#include "oracle/kernels_moe.h"

namespace lquant::oracle {

Routed sort_by_expert(const std::vector<int>& experts, int num_experts) {
  Routed result;
  for (int expert = 0; expert < num_experts; ++expert) {
    result.offsets.push_back(static_cast<int>(result.order.size()));
    for (std::size_t i = 0; i < experts.size(); ++i) {
      if (experts[i] == expert) result.order.push_back(static_cast<int>(i));
    }
  }
  result.offsets.push_back(static_cast<int>(result.order.size()));
  return result;
}

std::vector<double> gather_rows(const std::vector<double>& x, const Routed& routed, int k, int width) {
  std::vector<double> result;
  for (int choice : routed.order) result.insert(result.end(), x.begin() + choice / k * width, x.begin() + (choice / k + 1) * width);
  return result;
}

std::vector<double> combine_rows(const std::vector<double>& y, const std::vector<double>& weights, const Routed& routed, int k, int width) {
  std::vector<double> result(y.size() / k, 0.0);
  for (std::size_t row = 0; row < routed.order.size(); ++row) {
    for (int i = 0; i < width; ++i) result[routed.order[row] / k * width + i] += weights[routed.order[row]] * y[row * width + i];
  }
  return result;
}

}  // namespace lquant::oracle
