#include "evaluate/distribution.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace lquant::evaluate {
namespace {

// Where the divergence of a token is under a millionth of the largest it takes no part in the mean; the axis would be empty for the most part.
constexpr int kMostDecades = 6;

double quantile(const std::vector<float>& sorted, double q) { return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))]; }

int decade(double value) { return static_cast<int>(std::floor(std::log10(value))); }

}  // namespace

double Distribution::edge(std::size_t i) const { return std::pow(10.0, first_decade + static_cast<double>(i) / kPerDecade); }

nlohmann::ordered_json Distribution::to_json() const {
  auto edges = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i <= counts.size(); ++i) edges.push_back(edge(i));
  return {{"median", median}, {"p90", p90}, {"p99", p99}, {"max", max}, {"below", below}, {"edges", edges}, {"counts", counts}};
}

Decades decades_of(std::vector<float> values) {
  std::erase_if(values, [](float v) { return !(v > 0) || std::isinf(v); });
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  Decades d;
  d.last = decade(values.back()) + 1;
  d.first = std::max(std::min(decade(quantile(values, 0.01)), d.last - 1), d.last - kMostDecades);
  return d;
}

Decades joined(Decades a, Decades b) { return {std::min(a.first, b.first), std::max(a.last, b.last)}; }

Distribution distribution_of(std::vector<float> values, Decades decades) {
  if (values.empty()) throw std::invalid_argument("[evaluate] distribution_of: no values");
  std::sort(values.begin(), values.end());
  Distribution d;
  d.first_decade = decades.first;
  d.counts.assign(static_cast<std::size_t>(decades.last - decades.first) * Distribution::kPerDecade, 0);
  for (const float v : values) {
    const double place = v > 0 ? (std::log10(static_cast<double>(v)) - decades.first) * Distribution::kPerDecade : -1;
    if (!(place >= 0)) {
      ++d.below;
      continue;
    }
    ++d.counts[std::min(static_cast<std::size_t>(place), d.counts.size() - 1)];
  }
  d.median = quantile(values, 0.5), d.p90 = quantile(values, 0.9), d.p99 = quantile(values, 0.99), d.max = values.back();
  return d;
}

}  // namespace lquant::evaluate
