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

// An expert that saw fewer tokens than an eighth of its inputs leans on the other experts' inputs with as many.
constexpr int kStarved = 8;
// Names in one warning.
constexpr int kNamed = 8;

double enough_for(const model::LinearSpec& linear) { return std::max(1, linear.in / kStarved); }

double own_tokens(const StackInputs& inputs, int e) {
  return std::accumulate(inputs.begin(), inputs.end(), 0.0, [&](double sum, const auto* some) { return sum + some->tokens(e); });
}

std::vector<int> starved_of(const model::LinearSpec& linear, const StackInputs& inputs) {
  std::vector<int> starved;
  if (!linear.routed()) return starved;
  for (int e = 0; e < inputs.front()->experts(); ++e)
    if (own_tokens(inputs, e) < enough_for(linear)) starved.push_back(e);
  return starved;
}

Hessian hessian_of(const StackInputs& inputs, int e) {
  auto sum = inputs.front()->of(e);
  for (std::size_t i = 1; i < inputs.size(); ++i) sum = calibration::together(sum, inputs[i]->of(e));
  return sum;
}

}  // namespace

void each_hessian(const model::LinearSpec& linear, const StackInputs& inputs, const std::function<void(int e, const Hessian& h)>& visit) {
  const auto starved = starved_of(linear, inputs);
  std::optional<Hessian> pooled;
  for (int e = 0; e < inputs.front()->experts(); ++e) {
    const bool leans = std::binary_search(starved.begin(), starved.end(), e);
    const auto own = hessian_of(inputs, e);
    if (!starved.empty()) pooled = pooled ? calibration::together(*pooled, own) : own;
    if (!leans) visit(e, own);
  }
  for (int e : starved) {
    auto h = hessian_of(inputs, e);
    if (pooled->tokens > 0) {
      const double enough = enough_for(linear);
      h.moment = mx::add(h.moment, mx::multiply(pooled->moment, mx::array(static_cast<float>(enough / pooled->tokens))));
      h.moment.eval();
      h.tokens += enough;
    }
    visit(e, h);
  }
}

std::vector<double> tokens_of(const model::LinearSpec& linear, const StackInputs& inputs) {
  std::vector<double> tokens;
  for (int e = 0; e < inputs.front()->experts(); ++e) tokens.push_back(own_tokens(inputs, e));
  if (std::accumulate(tokens.begin(), tokens.end(), 0.0) > 0)
    for (int e : starved_of(linear, inputs)) tokens[e] += enough_for(linear);
  return tokens;
}

void warn_of_starved(const model::LinearSpec& linear, const StackInputs& inputs, const run::Context& context) {
  const auto starved = starved_of(linear, inputs);
  if (starved.empty()) return;
  std::string names;
  for (std::size_t i = 0; i < starved.size() && i < kNamed; ++i) names += fmt::format("{}{}", i == 0 ? "" : ", ", starved[i]);
  context.warn(fmt::format("{}: {} of {} experts saw fewer than {:.0f} tokens ({}{}); they lean on the inputs of all experts. More rows help",
                           linear.path, starved.size(), inputs.front()->experts(), enough_for(linear), names, starved.size() > kNamed ? ", …" : ""));
}

}  // namespace lquant::pipeline
