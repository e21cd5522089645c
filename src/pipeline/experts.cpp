#include "pipeline/experts.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <numeric>
#include <optional>

namespace lquant::pipeline {
namespace mx = mlx::core;
using calibration::Hessian;

namespace {

// An expert is named when it saw fewer tokens than an eighth of its inputs.
constexpr int kStarved = 8;
// With fewer tokens than twice its inputs a linear comes out worse than by plain rounding: so many of the mean Hessian stand beside an expert's own,
// which outweigh them where it saw more. Without a threshold, for near it they are of use too (docs/methods/gptq.md).
constexpr int kLent = 2;
// Names in one warning.
constexpr int kNamed = 8;

double named_below(const model::LinearSpec& linear) { return std::max(1, linear.in / kStarved); }

double lent_to(const model::LinearSpec& linear) { return linear.routed() ? 1.0 * kLent * linear.in : 0; }

double own_tokens(const StackInputs& inputs, int e) {
  return std::accumulate(inputs.begin(), inputs.end(), 0.0, [&](double sum, const auto* some) { return sum + some->tokens(e); });
}

Hessian hessian_of(const StackInputs& inputs, int e) {
  auto sum = inputs.front()->of(e);
  for (std::size_t i = 1; i < inputs.size(); ++i) sum = calibration::together(sum, inputs[i]->of(e));
  return sum;
}

}  // namespace

void each_hessian(const model::LinearSpec& linear, const StackInputs& inputs, const std::function<void(int e, const Hessian& h)>& visit) {
  const int experts = inputs.front()->experts();
  std::optional<Hessian> mean;
  if (const double lent = lent_to(linear); lent > 0) {
    for (int e = 0; e < experts; ++e) mean = mean ? calibration::together(*mean, hessian_of(inputs, e)) : hessian_of(inputs, e);
    if (mean->tokens > 0) {
      mean->moment = mx::multiply(mean->moment, mx::array(static_cast<float>(lent / mean->tokens)));
      mean->moment.eval();
      mean->tokens = lent;
    }
  }
  for (int e = 0; e < experts; ++e) {
    const auto own = hessian_of(inputs, e);
    visit(e, mean ? calibration::together(own, *mean) : own);
  }
}

std::vector<double> tokens_of(const model::LinearSpec& linear, const StackInputs& inputs) {
  std::vector<double> tokens;
  for (int e = 0; e < inputs.front()->experts(); ++e) tokens.push_back(own_tokens(inputs, e));
  if (std::accumulate(tokens.begin(), tokens.end(), 0.0) > 0)
    for (auto& own : tokens) own += lent_to(linear);
  return tokens;
}

void warn_of_starved(const model::LinearSpec& linear, const StackInputs& inputs, const run::Context& context) {
  if (!linear.routed()) return;
  std::vector<int> starved;
  for (int e = 0; e < inputs.front()->experts(); ++e)
    if (own_tokens(inputs, e) < named_below(linear)) starved.push_back(e);
  if (starved.empty()) return;
  std::string names;
  for (std::size_t i = 0; i < starved.size() && i < kNamed; ++i) names += fmt::format("{}{}", i == 0 ? "" : ", ", starved[i]);
  context.warn(fmt::format("{}: {} of {} experts saw fewer than {:.0f} tokens ({}{}); they lean on the inputs of all experts. More rows help",
                           linear.path, starved.size(), inputs.front()->experts(), named_below(linear), names, starved.size() > kNamed ? ", …" : ""));
}

}  // namespace lquant::pipeline
