#include "plan/threshold.h"

#include <algorithm>

#include "base/error.h"

namespace lquant::plan {

QuantPlan threshold_plan(const model::ModelSpec& spec, const codec::Format& low, const codec::Format& high,
                         const std::map<std::string, double>& sensitivities, double target_bits, int dense_bytes) {
  const auto lowest = uniform_plan(spec, low);
  double least = INFINITY, most = -INFINITY;
  for (const auto& [path, format] : lowest.formats) {
    const auto it = sensitivities.find(path);
    if (it == sensitivities.end()) fail("plan", "{}: the sensitivities do not name it; make them anew for this model", path);
    least = std::min(least, it->second), most = std::max(most, it->second);
  }
  const auto above = [&](double threshold) {
    auto plan = lowest;
    for (const auto* linear : spec.linears())
      if (const auto it = plan.formats.find(linear->path); it != plan.formats.end() && (!linear->fixed_format || linear->only_advised) &&
                                                           sensitivities.at(linear->path) > threshold && linear->in % high.group_size == 0)
        it->second = high;
    return plan;
  };
  const double tolerance = 1e-3 * (most - least);
  while (most - least > tolerance) {
    const double middle = (most + least) / 2;
    (size_of(spec, above(middle), dense_bytes).bits_per_weight() > target_bits ? least : most) = middle;
  }
  return above((most + least) / 2);
}

}  // namespace lquant::plan
