#include "pipeline/experts.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>

namespace lquant::pipeline {
namespace mx = mlx::core;

namespace {
// An expert that saw fewer tokens than an eighth of its inputs leans on the other experts' inputs with as many.
constexpr int kStarved = 8;
// Names in one warning.
constexpr int kNamed = 8;
}  // namespace

std::vector<calibration::Hessian> supported(const model::LinearSpec& linear, std::vector<calibration::Hessian> sums, const run::Context& context) {
  if (linear.experts == 0 || linear.stack != model::LinearSpec::Stack::routed) return sums;
  auto pooled = sums.front();
  for (std::size_t e = 1; e < sums.size(); ++e) pooled = calibration::together(pooled, sums[e]);
  const double enough = std::max(1, linear.in / kStarved);
  std::string starved;
  int count = 0;
  for (std::size_t e = 0; e < sums.size(); ++e) {
    if (sums[e].tokens >= enough) continue;
    if (++count <= kNamed) starved += fmt::format("{}{}", starved.empty() ? "" : ", ", e);
    if (pooled.tokens <= 0) continue;
    sums[e].moment = mx::add(sums[e].moment, mx::multiply(pooled.moment, mx::array(static_cast<float>(enough / pooled.tokens))));
    sums[e].tokens += enough;
  }
  if (count > 0)
    context.warn(fmt::format("{}: {} of {} experts saw fewer than {:.0f} tokens ({}{}); they lean on the inputs of all experts. More rows help",
                             linear.path, count, sums.size(), enough, starved, count > kNamed ? ", …" : ""));
  return sums;
}

}  // namespace lquant::pipeline
