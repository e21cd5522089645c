#pragma once

#include <map>
#include <string>

#include "plan/plan.h"

namespace lquant::plan {

/// The rule of mlx_lm.dynamic_quant: linears whose sensitivity lies above a threshold get `high`, the others `low`; the threshold is found by
/// bisection between the smallest and the largest sensitivity, to a thousandth of their distance, so that the bits per weight come near the target.
/// It is here to be compared with: FormatChooser does better with the same sensitivities. Throws Error for a linear without sensitivity.
QuantPlan threshold_plan(const model::ModelSpec& spec, const codec::Format& low, const codec::Format& high,
                         const std::map<std::string, double>& sensitivities, double target_bits, int dense_bytes = 2);

}  // namespace lquant::plan
