#include "evaluate/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace lquant::evaluate {
namespace {

constexpr double kNormal975 = 1.959963984540054;  // the normal distribution's 97.5 % quantile

/// P(X ≤ most) of a binomial X with `trials` fair trials.
double fair_binomial(std::int64_t trials, std::int64_t most) {
  double sum = 0;
  const auto n = static_cast<double>(trials);
  for (std::int64_t k = 0; k <= most; ++k) {
    const auto x = static_cast<double>(k);
    sum += std::exp(std::lgamma(n + 1) - std::lgamma(x + 1) - std::lgamma(n - x + 1) - n * std::log(2.0));
  }
  return sum;
}

}  // namespace

std::size_t likeliest(const Likelihoods& likelihoods) {
  return static_cast<std::size_t>(std::max_element(likelihoods.begin(), likelihoods.end()) - likelihoods.begin());
}

std::size_t likeliest(const Likelihoods& likelihoods, std::span<const std::size_t> lengths) {
  Likelihoods scaled;
  for (std::size_t i = 0; i < likelihoods.size(); ++i) scaled.push_back(likelihoods[i] / static_cast<double>(lengths[i]));
  return likeliest(scaled);
}

Mean mean_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double v : values) sum += v;
  const double mean = sum / n;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return {mean, values.size() < 2 ? std::numeric_limits<double>::quiet_NaN() : std::sqrt(squares / (n - 1)) / std::sqrt(n)};
}

Paired compare(const std::vector<double>& model, const std::vector<double>& other) {
  if (model.size() != other.size() || model.empty()) throw std::invalid_argument("[evaluate] compare: as many values of both, at least one");
  Paired result;
  result.rows = static_cast<std::int64_t>(model.size());
  for (std::size_t i = 0; i < model.size(); ++i) {
    if (model[i] > other[i]) ++result.gained;
    if (model[i] < other[i]) ++result.lost;
  }
  const auto n = static_cast<double>(result.rows);
  result.difference = static_cast<double>(result.gained - result.lost) / n;
  const double gain = static_cast<double>(result.gained + 1) / (n + 2), loss = static_cast<double>(result.lost + 1) / (n + 2);
  const double middle = gain - loss, half = kNormal975 * std::sqrt((gain + loss - middle * middle) / (n + 2));
  result.low = std::max(-1.0, std::min(middle - half, result.difference));
  result.high = std::min(1.0, std::max(middle + half, result.difference));
  result.p = std::min(1.0, 2 * fair_binomial(result.gained + result.lost, std::min(result.gained, result.lost)));
  return result;
}

}  // namespace lquant::evaluate
