#pragma once

#include <vector>

namespace lquant::oracle {

/// The least Σ h·(w − ŵ)² over every bf16 scale and bias, of either sign, whose values span a range with its lower edge between `least`·min
/// and min of w and its upper edge between `least`·max and max (min < 0 < max), and over every code. ŵ is rounded to bf16
/// after the product and after the sum. Slow: it tries them all.
double exhaustive_range_error(const std::vector<float>& w, const std::vector<float>& h, int bits, double least);

}  // namespace lquant::oracle
