#include "oracle/model_sampling.h"

#include <algorithm>
#include <cmath>

namespace lquant::oracle {

std::vector<double> sampling_distribution(const std::vector<float>& logits, const model::SampleOptions& options) {
  const int vocab = static_cast<int>(logits.size());
  std::vector<double> p(vocab);
  double total = 0;
  for (int t = 0; t < vocab; ++t) total += p[t] = std::exp(double(logits[t]));
  for (auto& value : p) value /= total;

  std::vector<bool> keep(vocab, true);
  const double largest = *std::max_element(p.begin(), p.end());
  for (int t = 0; t < vocab; ++t) {
    double above = 0;
    for (int u = 0; u < vocab; ++u) above += p[u] > p[t] ? p[u] : 0;
    if (options.top_p > 0 && options.top_p < 1 && above >= options.top_p) keep[t] = false;
    if (options.min_p > 0 && p[t] < options.min_p * largest) keep[t] = false;
  }
  const auto kept = keep;
  for (int t = 0; t < vocab; ++t) {
    int better = 0;
    for (int u = 0; u < vocab; ++u) better += kept[u] && p[u] > p[t];
    if (options.top_k > 0 && better >= options.top_k) keep[t] = false;
  }
  std::vector<double> result(vocab);
  total = 0;
  for (int t = 0; t < vocab; ++t) total += result[t] = keep[t] ? std::pow(p[t], 1 / double(options.temperature)) : 0;
  for (auto& value : result) value /= total;
  return result;
}

}  // namespace lquant::oracle
