// The roundings are mlx_lm's: scores of the compute dtype unless a family makes them in f32, and a softmax that is f32 inside.
#include "model/ops/router.h"

#include <mlx/mlx.h>

#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels/linear.h"

namespace lquant::model {
namespace {

mx::array scores_of(const Router& router, const mx::array& logits) {
  switch (router.score) {
    case Router::Score::softmax:
      return mx::softmax(logits, -1, /*precise=*/true);
    case Router::Score::softmax_chosen:
    case Router::Score::sigmoid_chosen:
    case Router::Score::sparse_mixer:
      return logits;
    case Router::Score::sigmoid:
      return mx::sigmoid(logits);
    case Router::Score::sqrt_softplus:
      return mx::sqrt(mx::logaddexp(logits, mx::array(0.0f, logits.dtype())));
  }
  throw std::invalid_argument("[model] no such score");
}

mx::array without_lost_groups(const Router::Groups& groups, const mx::array& scores) {
  const int tokens = scores.shape(0), experts = scores.shape(1), lost = groups.count - groups.kept;
  auto grouped = mx::unflatten(scores, -1, {groups.count, experts / groups.count});
  const auto of_group = groups.by_two ? mx::sum(mx::topk(grouped, 2, -1), -1) : mx::max(grouped, -1);
  const auto worst = mx::slice(mx::argpartition(of_group, lost - 1, -1), {0, 0}, {tokens, lost});
  const auto numbers = mx::arange(groups.count, mx::uint32);
  const auto is_lost = mx::any(mx::equal(mx::unflatten(worst, -1, {lost, 1}), numbers), 1, /*keepdims=*/true);
  grouped = mx::where(mx::swapaxes(is_lost, 1, 2), mx::array(groups.lost, scores.dtype()), grouped);
  return mx::flatten(grouped, 1, 2);
}

struct Picked {
  mx::array experts, weights;  ///< [T, top_k]
};

Picked mix_sparsely(const Router& router, const mx::array& logits) {
  const auto never = mx::array(-std::numeric_limits<float>::infinity(), logits.dtype());
  const auto fixed = mx::stop_gradient(logits);
  auto left = fixed, open = logits;  // without those that are chosen
  std::vector<mx::array> experts, weights;
  for (int k = 0; k < router.top_k; ++k) {
    const auto largest = mx::max(left, -1, /*keepdims=*/true);
    const auto expert = mx::argmax(left, -1, /*keepdims=*/true);
    const auto distance = mx::divide(mx::subtract(largest, fixed), mx::maximum(mx::abs(fixed), largest));
    const auto far = mx::greater(distance, mx::array(2 * router.jitter, distance.dtype()));
    const auto shares = mx::softmax(mx::where(far, never, open), -1, /*precise=*/true);
    experts.push_back(expert);
    weights.push_back(mx::take_along_axis(shares, expert, -1));
    left = mx::put_along_axis(left, expert, never, -1);
    open = mx::put_along_axis(open, expert, never, -1);
  }
  return {mx::concatenate(experts, -1), mx::concatenate(weights, -1)};
}

/// The largest by score and correction, with their scores.
Picked pick_largest(const Scope& scope, const Router& router, const mx::array& scores) {
  auto ranked = mx::stop_gradient(scores);
  if (router.correction) ranked = mx::add(ranked, mx::astype(scope.tensor(router.correction->path), mx::float32));
  const bool grouped = router.groups.count > router.groups.kept;
  if (grouped) ranked = without_lost_groups(router.groups, ranked);
  const int first = grouped ? 0 : router.experts - router.top_k;
  // Experts of lost groups are equal: where some are chosen all the same, they are those that mlx_lm takes, which looks for the least of −score.
  const auto order = grouped     ? mx::argpartition(mx::negative(ranked), router.top_k - 1, -1)
                     : first > 0 ? mx::argpartition(ranked, first, -1)
                                 : mx::argsort(ranked, -1);
  const auto experts = mx::slice(order, {0, first}, {order.shape(0), first + router.top_k});
  return {experts, mx::take_along_axis(scores, experts, -1)};
}

}  // namespace

Choice choose(const Scope& scope, const Router& router, const mx::array& input) {
  auto weight = scope.weight(router.linear);
  const auto in_f32 = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  if (router.f32_product) {
    weight.weight = in_f32(weight.weight);
    if (weight.bias) weight.bias = in_f32(*weight.bias);
  }
  auto logits = kernels::linear(router.f32_product ? in_f32(input) : input, weight);
  if (router.f32) logits = in_f32(logits);
  if (router.logit_factor != 1) logits = mx::multiply(logits, mx::array(router.logit_factor, logits.dtype()));
  if (router.softcap > 0) {
    const mx::array cap(router.softcap, logits.dtype());
    logits = mx::multiply(mx::tanh(mx::divide(logits, cap)), cap);
  }
  if (router.temperature != 1) logits = mx::divide(logits, mx::array(router.temperature, logits.dtype()));
  const auto scores = scores_of(router, logits);
  const auto picked = router.score == Router::Score::sparse_mixer ? mix_sparsely(router, scores) : pick_largest(scope, router, scores);
  auto weights = picked.weights;
  if (router.score == Router::Score::softmax_chosen) weights = mx::softmax(weights, -1, /*precise=*/true);
  if (router.score == Router::Score::sigmoid_chosen) weights = mx::sigmoid(weights);
  const auto number = [&](float value) { return mx::array(value, weights.dtype()); };
  if (router.normalize) {
    auto sum = mx::sum(weights, -1, /*keepdims=*/true);
    if (router.epsilon != 0) sum = mx::add(sum, number(router.epsilon));
    if (router.floor != 0) sum = mx::maximum(sum, number(router.floor));
    weights = mx::divide(weights, sum);
  }
  if (router.factor != 1) weights = mx::multiply(weights, number(router.factor));
  if (router.expert_factors) weights = mx::multiply(weights, mx::take(scope.tensor(router.expert_factors->path), picked.experts, 0));
  if (router.rounded) weights = mx::astype(weights, scope.dtype);
  return {mx::astype(picked.experts, mx::int32), std::move(weights)};
}

}  // namespace lquant::model
