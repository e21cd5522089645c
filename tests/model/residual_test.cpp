// A residual in f32 with factors for each feature, in a state of any dtype, beside the same in double.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <memory>
#include <vector>

#include "model/block.h"
#include "model/ops/exact.h"
#include "model/ops/linear.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

constexpr int kPlaces = 5, kWidth = 16;

std::vector<double> doubles(const mx::array& x) {
  auto host = mx::contiguous(mx::astype(x, mx::float32));
  host.eval();
  return {host.data<float>(), host.data<float>() + host.size()};
}

mx::array normal(const mx::Shape& shape, int seed, float mean = 0, float deviation = 1) {
  return mx::random::normal(shape, mx::float32, mean, deviation, mx::random::key(seed));
}

/// One block of one step: x ← alpha ⊙ x + beta ⊙ W norm(x).
struct OneStep {
  ModelSpec spec;
  Tensors tensors;

  explicit OneStep(mx::Dtype dtype) {
    Linear op;
    op.linear = {.path = "linear", .out = kWidth, .in = kWidth, .block = 0};
    NormSpec norm;
    norm.path = "norm";
    norm.size = kWidth;
    norm.reads_f32 = true;
    Step step;
    step.branches = {{.before = norm, .op = std::make_shared<const Linear>(op)}};
    step.factors = ResidualFactors{{"alpha", {kWidth}, true}, {"beta", {kWidth}, true}};
    BlockSpec block;
    block.steps = {step};
    spec.hidden = kWidth;
    spec.blocks = {block};
    tensors = {{"linear.weight", mx::astype(normal({kWidth, kWidth}, 1, 0, 0.3f), dtype)},
               {"norm.weight", mx::astype(normal({kWidth}, 2, 1, 0.3f), dtype)},
               {"alpha", normal({kWidth}, 3, 0.9f, 0.05f)},
               {"beta", normal({kWidth}, 4, 0.4f, 0.1f)}};
  }

  mx::array run(const mx::array& state) const { return block(spec, Visit(0), tensors, {}, state); }
};

/// What one run adds to x, as it is rounded: the norm's result and the product are of the state's dtype.
std::vector<double> added_once(const OneStep& model, const std::vector<double>& x, const mx::array& state) {
  const auto h = mx::astype(out_of_columns(state, kNumberColumns), mx::float32);
  const auto scale = mx::rsqrt(mx::add(mx::mean(mx::square(h), -1, true), mx::array(1e-6f)));
  const auto dtype = state.dtype();
  const auto normed = mx::astype(mx::multiply(mx::multiply(h, scale), mx::astype(model.tensors.at("norm.weight"), mx::float32)), dtype);
  const auto product = mx::matmul(mx::astype(normed, mx::float32), mx::transpose(mx::astype(model.tensors.at("linear.weight"), mx::float32)));
  const auto y = doubles(product), alpha = doubles(model.tensors.at("alpha")), beta = doubles(model.tensors.at("beta"));
  std::vector<double> all;
  for (std::size_t i = 0; i < x.size(); ++i) all.push_back(alpha[i % kWidth] * x[i] + beta[i % kWidth] * y[i]);
  return all;
}

// Results of branches are below 4. In f32 they are sums of 16 products, of which each may be rounded by 2^-24 of that; in bf16 the norm's result,
// whose last digit two ways of rounding may set otherwise, and the product are rounded by 2^-8.
TEST(Residual, FactorsMeetEachFeatureInF32) {
  for (const auto dtype : {mx::float32, mx::bfloat16}) {
    const OneStep model(dtype);
    const auto x = normal({1, kPlaces, kWidth}, 5);
    const auto state = in_columns(x, kNumberColumns, dtype), made = model.run(state);
    ASSERT_EQ(made.shape(), state.shape());
    ASSERT_EQ(made.dtype(), dtype);
    const auto found = doubles(out_of_columns(made, kNumberColumns)), wanted = added_once(model, doubles(x), state);
    const double near = 4 * (dtype == mx::float32 ? 0x1p-20 : 2 * 0x1p-8);
    for (std::size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(found[i], wanted[i], near) << i;
  }
}

// Of what a state of bf16 holds nothing is lost where nothing is added, however often it is read: 0.99^100 of f32 numbers, two roundings a run.
TEST(Residual, AStateOf16BitsHoldsNumbersOf32) {
  OneStep model(mx::bfloat16);
  model.tensors.insert_or_assign("alpha", mx::full({kWidth}, 0.99f));
  model.tensors.insert_or_assign("beta", mx::zeros({kWidth}));
  const auto x = normal({1, kPlaces, kWidth}, 6);
  auto state = in_columns(x, kNumberColumns, mx::bfloat16);
  for (int run = 0; run < 100; ++run) state = model.run(state);
  const auto found = doubles(out_of_columns(state, kNumberColumns)), before = doubles(x);
  const double factor = std::pow(static_cast<double>(0.99f), 100);
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(found[i], factor * before[i], 200 * 0x1p-24 * std::abs(before[i])) << i;
}

// Of a step h central differences err by h² times the third derivative and by roundings of 2^-24 of the sum (some tens) over h.
TEST(Residual, GradientsReachResidualAndFactors) {
  constexpr float kStep = 4e-3f, kNear = 2e-3f;
  const OneStep model(mx::float32);
  const auto weights = normal({1, kPlaces, kWidth}, 7);
  const auto of = [&](const std::vector<mx::array>& at) {
    auto own = model;
    own.tensors.insert_or_assign("alpha", at[1]);
    own.tensors.insert_or_assign("beta", at[2]);
    const auto made = own.run(in_columns(at[0], kNumberColumns, mx::float32));
    return mx::sum(mx::multiply(out_of_columns(made, kNumberColumns), weights));
  };
  const std::vector<mx::array> at = {normal({1, kPlaces, kWidth}, 8), model.tensors.at("alpha"), model.tensors.at("beta")};
  const auto gradients = mx::value_and_grad(of, std::vector<int>{0, 1, 2})(at).second;
  for (int which = 0; which < 3; ++which) {
    EXPECT_GT(mx::max(mx::abs(gradients[which])).item<float>(), 0.05f);
    for (int i = 0; i < 3; ++i) {
      auto direction = normal(at[which].shape(), 20 + i, 0, 1 / std::sqrt(static_cast<float>(at[which].size())));
      const auto moved = [&](float h) {
        auto other = at;
        other[which] = mx::add(at[which], mx::multiply(mx::array(h), direction));
        return of(other).item<float>();
      };
      const double numeric = (moved(kStep) - moved(-kStep)) / (2 * kStep);
      EXPECT_NEAR(mx::sum(mx::multiply(gradients[which], direction)).item<float>(), numeric, kNear) << "argument " << which << ", direction " << i;
    }
  }
}

}  // namespace
}  // namespace lquant::model
