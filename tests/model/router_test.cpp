#include "model/ops/router.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "model/op.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

constexpr int kTokens = 7, kHidden = 5, kExperts = 12;
// Sums of five products, a sum over twelve exponentials, a division, a factor: some ten roundings of 2^-24 each.
constexpr double kRounding = 10 * 0x1p-24;
constexpr float kNever = -std::numeric_limits<float>::infinity();

using Rows = std::vector<std::vector<double>>;  // [T][experts]

std::vector<double> numbers(const mx::array& x) {
  auto host = mx::contiguous(mx::astype(x, mx::float32));
  host.eval();
  return {host.data<float>(), host.data<float>() + host.size()};
}

double softplus(double x) { return std::log1p(std::exp(x)); }

std::vector<double> softmax(const std::vector<double>& x) {
  std::vector<double> shares;
  double sum = 0;
  for (const double value : x) sum += shares.emplace_back(std::exp(value));
  for (auto& share : shares) share /= sum;
  return shares;
}

/// What the definitions in router.h say, token by token, in double: the weight of every expert, 0 for those that are not chosen.
class Reference {
 public:
  Reference(const Router& router, const std::vector<double>& correction, const std::vector<double>& factors)
      : router_(router), correction_(correction), factors_(factors) {}

  std::vector<double> weights(const std::vector<double>& logits) const {
    auto all = router_.score == Router::Score::sparse_mixer ? mixed(logits) : picked(logits);
    double sum = 0;
    for (const double weight : all) sum += weight;
    const double divisor = router_.normalize ? std::max<double>(sum + router_.epsilon, router_.floor) : 1;
    for (int e = 0; e < kExperts; ++e) all[e] *= router_.factor / divisor * (factors_.empty() ? 1 : factors_[e]);
    return all;
  }

 private:
  std::vector<double> scores(const std::vector<double>& logits) const {
    if (router_.score == Router::Score::softmax) return softmax(logits);
    auto all = logits;
    for (auto& x : all) {
      if (router_.score == Router::Score::sigmoid) x = 1 / (1 + std::exp(-x));
      if (router_.score == Router::Score::sqrt_softplus) x = std::sqrt(softplus(x));
    }
    return all;
  }

  std::vector<double> picked(const std::vector<double>& logits) const {
    const auto own = scores(logits);
    auto ranked = own;
    for (int e = 0; e < kExperts && !correction_.empty(); ++e) ranked[e] += correction_[e];
    const auto& groups = router_.groups;
    const int size = kExperts / groups.count;
    std::vector<std::pair<double, int>> order;
    for (int g = 0; g < groups.count; ++g) {
      std::vector<double> members(ranked.begin() + g * size, ranked.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      order.emplace_back(groups.by_two ? members[0] + members[1] : members[0], g);
    }
    std::sort(order.begin(), order.end());
    for (int lost = 0; lost < groups.count - groups.kept; ++lost)
      for (int i = 0; i < size; ++i) ranked[order[lost].second * size + i] = groups.lost;
    std::vector<double> weights(kExperts);
    for (int k = 0; k < router_.top_k; ++k) {
      const auto best = std::max_element(ranked.begin(), ranked.end()) - ranked.begin();
      ranked[best] = kNever;
      weights[best] = router_.score == Router::Score::softmax_chosen ? std::exp(own[best]) : own[best];
    }
    if (router_.score == Router::Score::softmax_chosen) {
      double sum = 0;
      for (const double weight : weights) sum += weight;
      for (auto& weight : weights) weight /= sum;
    }
    return weights;
  }

  std::vector<double> mixed(const std::vector<double>& logits) const {
    auto left = logits;
    std::vector<double> weights(kExperts);
    for (int k = 0; k < router_.top_k; ++k) {
      const auto best = std::max_element(left.begin(), left.end()) - left.begin();
      double sum = 0;
      for (int e = 0; e < kExperts; ++e)
        if ((left[best] - logits[e]) / std::max(std::abs(logits[e]), left[best]) <= 2 * router_.jitter) sum += std::exp(left[e]);
      weights[best] = std::exp(left[best]) / sum;
      left[best] = kNever;
    }
    return weights;
  }

  const Router& router_;
  std::vector<double> correction_, factors_;
};

struct Subject {
  Router router;
  Tensors tensors;
  mx::array input = mx::random::normal({kTokens, kHidden}, mx::float32, 0, 1, mx::random::key(1));

  explicit Subject(Router::Score score = Router::Score::softmax, int top_k = 3) {
    router.experts = kExperts;
    router.top_k = top_k;
    router.score = score;
    router.linear = {.path = "router", .role = Role::router, .out = kExperts, .in = kHidden};
    tensors.emplace("router.weight", mx::random::normal({kExperts, kHidden}, mx::float32, 0, 1, mx::random::key(2)));
  }
  void correct() {
    router.correction = ParameterSpec{"correction", {kExperts}};
    tensors.emplace("correction", mx::random::uniform(mx::array(0.0f), mx::array(1.0f), {kExperts}, mx::float32, mx::random::key(3)));
  }
  /// The weights as choose gives them, every expert in its place: [T, experts].
  mx::array spread(const mx::array& weight, const mx::array& x) const {
    auto own = tensors;
    own.insert_or_assign("router.weight", weight);
    const Formats formats;
    const Context context;
    const auto choice = choose(Scope{own, formats, context, x.dtype(), 0}, router, x);
    EXPECT_EQ(choice.experts.dtype(), mx::int32);
    EXPECT_EQ(choice.experts.shape(), (mx::Shape{kTokens, router.top_k}));
    return mx::put_along_axis(mx::zeros({kTokens, kExperts}, choice.weights.dtype()), choice.experts, choice.weights, -1);
  }
  mx::array spread() const { return spread(tensors.at("router.weight"), input); }

  std::vector<double> of(const char* name) const { return tensors.contains(name) ? numbers(tensors.at(name)) : std::vector<double>(); }

  Rows expected() const {
    const auto weight = numbers(tensors.at("router.weight")), x = numbers(input), bias = of("router.bias");
    const Reference reference(router, of("correction"), of("factors"));
    Rows rows;
    for (int t = 0; t < kTokens; ++t) {
      std::vector<double> logits(kExperts);
      for (int e = 0; e < kExperts; ++e) {
        for (int h = 0; h < kHidden; ++h) logits[e] += x[t * kHidden + h] * weight[e * kHidden + h];
        if (!bias.empty()) logits[e] += bias[e];
        logits[e] *= router.logit_factor;
      }
      rows.push_back(reference.weights(logits));
    }
    return rows;
  }

  void expect_as_defined() const {
    const auto found = numbers(spread());
    const auto wanted = expected();
    for (int t = 0; t < kTokens; ++t)
      for (int e = 0; e < kExperts; ++e)
        EXPECT_NEAR(found[t * kExperts + e], wanted[t][e], kRounding * std::max(1.0, std::abs(wanted[t][e]))) << "token " << t << ", expert " << e;
  }
};

const std::vector<Router::Score> kScores = {Router::Score::softmax, Router::Score::softmax_chosen, Router::Score::sigmoid,
                                            Router::Score::sqrt_softplus, Router::Score::sparse_mixer};

TEST(Router, EachScoreIsAsItIsDefined) {
  for (const auto score : kScores)
    for (const int top_k : {1, 3, kExperts}) {
      SCOPED_TRACE(testing::Message() << "score " << static_cast<int>(score) << ", top_k " << top_k);
      Subject subject(score, top_k);
      subject.router.jitter = 0.2f;  // some of twelve random logits are as near as that, most are not
      subject.expect_as_defined();
    }
}

TEST(Router, ABiasOfTheLinearCounts) {
  Subject subject(Router::Score::softmax_chosen);
  subject.router.linear.bias = true;
  subject.tensors.emplace("router.bias", mx::random::normal({kExperts}, mx::float32, 0, 1, mx::random::key(4)));
  subject.expect_as_defined();
}

TEST(Router, LogitsHaveAFactor) {
  Subject subject(Router::Score::sigmoid);
  subject.router.logit_factor = 0.3f;
  subject.correct();  // so that the choice depends on the scores' size too
  subject.expect_as_defined();
}

TEST(Router, WeightsAreNormedAndScaled) {
  for (const auto score : kScores) {
    SCOPED_TRACE(static_cast<int>(score));
    Subject subject(score);
    subject.router.jitter = 0.2f;
    subject.router.normalize = true;
    subject.expect_as_defined();
    subject.router.epsilon = 0.25f;
    subject.expect_as_defined();
    subject.router.epsilon = 0;
    subject.router.floor = 0.8f;  // above some sums of three scores and below others
    subject.router.factor = 2.5f;
    subject.expect_as_defined();
    subject.router.normalize = false;
    subject.router.expert_factors = ParameterSpec{"factors", {kExperts}};
    subject.tensors.emplace("factors", mx::random::normal({kExperts}, mx::float32, 1, 0.3f, mx::random::key(5)));
    subject.expect_as_defined();
  }
}

TEST(Router, ACorrectionChangesTheChoiceAndNoWeight) {
  Subject subject(Router::Score::sigmoid);
  const auto before = numbers(subject.spread());
  subject.correct();
  subject.expect_as_defined();
  const auto after = numbers(subject.spread());
  int same = 0, other = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    other += (before[i] == 0) != (after[i] == 0);
    if (before[i] == 0 || after[i] == 0) continue;
    EXPECT_EQ(before[i], after[i]);
    ++same;
  }
  EXPECT_GT(same, 0);
  EXPECT_GT(other, 0);
}

// With −∞ no expert of a lost group can win; with 0, mlx_lm's own, one can where corrected scores are negative.
TEST(Router, GroupsLoseWhole) {
  for (const bool by_two : {true, false})
    for (const float lost : {0.0f, kNever})
      for (const int kept : {1, 2, 3}) {
        SCOPED_TRACE(testing::Message() << "by two " << by_two << ", lost " << lost << ", kept " << kept);
        Subject subject(Router::Score::sigmoid);
        subject.router.groups = {.count = 4, .kept = kept, .by_two = by_two, .lost = lost};
        subject.expect_as_defined();
        subject.correct();
        subject.expect_as_defined();
      }
}

TEST(Router, ALostGroupOfZerosWinsAgainstNegativeScores) {
  Subject subject(Router::Score::sigmoid);
  subject.router.groups = {.count = 4, .kept = 1, .by_two = true, .lost = 0};
  subject.router.correction = ParameterSpec{"correction", {kExperts}};
  // Distinct by group, so that which of the lost experts wins does not matter: three experts of the one group that is kept are below 0.
  subject.tensors.emplace("correction", mx::full({kExperts}, -2.0f));
  const auto weights = numbers(subject.spread());
  auto kept = subject;
  kept.router.groups.lost = kNever;
  const auto own = numbers(kept.spread());
  for (int t = 0; t < kTokens; ++t)
    for (int e = 0; e < kExperts; ++e)
      if (own[t * kExperts + e] > 0) EXPECT_EQ(weights[t * kExperts + e], 0) << "token " << t << ", expert " << e;
}

TEST(Router, ScoresHaveTheDtypeThatIsAskedFor) {
  const auto dtype = [](const auto& change) {
    Subject subject(Router::Score::sigmoid);
    change(subject.router);
    return subject.spread(mx::astype(subject.tensors.at("router.weight"), mx::bfloat16), mx::astype(subject.input, mx::bfloat16)).dtype();
  };
  EXPECT_EQ(dtype([](Router&) {}), mx::bfloat16);
  EXPECT_EQ(dtype([](Router& router) { router.f32 = true; }), mx::float32);
  EXPECT_EQ(dtype([](Router& router) { router.f32_product = true; }), mx::float32);
  EXPECT_EQ(dtype([](Router& router) { router.f32 = router.rounded = true; }), mx::bfloat16);
}

// A product in f32 of the same 16-bit numbers is exact up to f32's own rounding; one in bf16 is not.
TEST(Router, AProductInF32LosesNothing) {
  Subject subject(Router::Score::sigmoid);
  for (auto* x : {&subject.tensors.at("router.weight"), &subject.input}) *x = mx::astype(*x, mx::bfloat16);
  subject.router.f32_product = true;
  subject.expect_as_defined();
}

// The choice has no gradient; the weights have that of a function of the router's weight, which central differences know. Of a step h they err by
// h² times the third derivative and by a rounding of 2^-24 of the sum (some tens) over h: 2e-4 with h = 2e-3 and derivatives of order 1.
TEST(Router, WeightsHaveGradients) {
  constexpr float kStep = 2e-3f, kNear = 1e-3f;
  const auto factors = mx::random::normal({kTokens, kExperts}, mx::float32, 0, 1, mx::random::key(6));
  for (const auto score : kScores)
    for (const bool normalize : {false, true}) {
      SCOPED_TRACE(testing::Message() << "score " << static_cast<int>(score) << ", normalize " << normalize);
      Subject subject(score);
      subject.router.jitter = 0.2f;
      subject.router.normalize = normalize;
      subject.router.factor = 1.5f;
      const auto sum = [&](const mx::array& weight) { return mx::sum(mx::multiply(subject.spread(weight, subject.input), factors)); };
      const auto& weight = subject.tensors.at("router.weight");
      const auto gradient = mx::grad([&](const mx::array& w) { return sum(w); })(weight);
      EXPECT_GT(mx::max(mx::abs(gradient)).item<float>(), 0.05f);
      for (int i = 0; i < 4; ++i) {
        const auto direction = mx::random::normal(weight.shape(), mx::float32, 0, 1 / std::sqrt(60.0f), mx::random::key(10 + i));
        const auto moved = [&](float h) { return sum(mx::add(weight, mx::multiply(mx::array(h), direction))).item<float>(); };
        const double numeric = (moved(kStep) - moved(-kStep)) / (2 * kStep);
        EXPECT_NEAR(mx::sum(mx::multiply(gradient, direction)).item<float>(), numeric, kNear) << "direction " << i;
      }
    }
}

}  // namespace
}  // namespace lquant::model
