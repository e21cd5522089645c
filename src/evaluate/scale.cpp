#include "evaluate/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evaluate/html.h"

namespace lquant::evaluate {
namespace {

constexpr int kSteps[] = {1, 2, 5};

/// The steps' multiples of powers of ten around [low, high], ascending.
std::vector<double> round_numbers(double low, double high) {
  std::vector<double> all;
  for (int d = static_cast<int>(std::floor(std::log10(low))) - 1; d <= static_cast<int>(std::ceil(std::log10(high))) + 1; ++d)
    for (const int step : kSteps) all.push_back(step * std::pow(10.0, d));
  return all;
}

// Powers of ten are rounded when they are made; a value that is one must not fall to its other side.
constexpr double kSlack = 1e-9;

}  // namespace

std::string plain(double value) {
  const double size = std::abs(value);
  return size != 0 && (size < 0.9e-3 || size >= 1e6) ? short_exponent(fmt::format("{:.0e}", value)) : fmt::format("{:.6g}", value);
}

double Scale::at(double value) const {
  double share = logarithmic ? (value > 0 ? std::log(value / low) / std::log(high / low) : 0) : (value - low) / (high - low);
  share = std::isfinite(share) ? std::clamp(share, 0.0, 1.0) : 0;
  return from + share * (to - from);
}

std::vector<Tick> Scale::ticks() const {
  std::vector<Tick> all;
  if (logarithmic) {
    const bool wide = high / low > 1e3 * (1 - kSlack);
    for (const double v : round_numbers(low, high)) {
      const double power = std::log10(v);
      if (wide && std::abs(power - std::round(power)) > kSlack) continue;
      if (v >= low * (1 - kSlack) && v <= high * (1 + kSlack)) all.push_back({v, plain(v)});
    }
    return all;
  }
  const double wanted = (high - low) / 6;
  const auto steps = round_numbers(wanted, wanted);
  const double step = *std::find_if(steps.begin(), steps.end(), [&](double s) { return s >= wanted * (1 - kSlack); });
  for (double v = std::ceil(low / step - kSlack) * step; v <= high + step * kSlack; v += step)
    all.push_back({v, plain(std::abs(v) < step * kSlack ? 0 : v)});
  return all;
}

Scale log_scale(const std::vector<double>& values, double from, double to) {
  Scale scale{true, 0.1, 1, from, to};
  double low = 0, high = 0;
  for (const double v : values)
    if (v > 0 && std::isfinite(v)) low = low > 0 ? std::min(low, v) : v, high = std::max(high, v);
  if (!(low > 0)) return scale;
  const auto numbers = round_numbers(low, high);
  for (const double v : numbers)
    if (v <= low * (1 + kSlack)) scale.low = v;
  scale.high = *std::find_if(numbers.begin(), numbers.end(), [&](double v) { return v >= high * (1 - kSlack) && v > scale.low * (1 + kSlack); });
  return scale;
}

Scale linear_scale(const std::vector<double>& values, double from, double to) {
  if (values.empty()) return {false, 0, 1, from, to};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double margin = *high > *low ? 0.1 * (*high - *low) : std::max(std::abs(*low) * 0.1, 1e-12);
  return {false, *low - margin, *high + margin, from, to};
}

}  // namespace lquant::evaluate
