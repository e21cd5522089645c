#include "kernels/moe.h"

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_moe.h"

namespace lquant::kernels {
namespace {

using namespace testing;

std::vector<int> choices(int tokens, int k, int num_experts) {
  std::vector<int> result;
  for (int i = 0; i < tokens * k; ++i) result.push_back((i * 7 + i / 3) % (num_experts - 1));  // the last expert starves
  return result;
}

Values absolute(Values v) {
  for (auto& x : v) x = std::abs(x);
  return v;
}

std::vector<int> ints(const mx::array& x) {
  auto copy = mx::contiguous(x);
  mx::eval(copy);
  return std::vector<int>(copy.data<std::int32_t>(), copy.data<std::int32_t>() + copy.size());
}

class Moe : public ::testing::TestWithParam<std::tuple<int, int, int>> {
 protected:
  int tokens = std::get<0>(GetParam()), k = std::get<1>(GetParam()), width = std::get<2>(GetParam()), num_experts = 5;
  std::vector<int> chosen = choices(tokens, k, num_experts);
  oracle::Routed want = oracle::sort_by_expert(chosen, num_experts);
  Routing routing = sort_by_expert(mx::array(chosen.data(), {tokens, k}, mx::int32), num_experts);
};

INSTANTIATE_TEST_SUITE_P(Sizes, Moe, ::testing::Combine(::testing::Values(1, 3, 50), ::testing::Values(1, 2, 4), ::testing::Values(1, 7, 65)));

TEST_P(Moe, SortsStably) {
  EXPECT_EQ(ints(routing.order), want.order);
  EXPECT_EQ(ints(routing.offsets), want.offsets);
}

TEST_P(Moe, GathersAndItsGradient) {
  for (auto dtype : kDtypes) {
    const auto x = normal({tokens, width}, dtype, 1), g = normal({tokens * k, width}, dtype, 2);
    const auto result = mx::vjp([&](const mx::array& x) { return gather_rows(x, routing, k); }, x, g);
    expect_close(result.first, oracle::gather_rows(doubles(x), want, k, width), Values(g.size(), 0.0), "rows are copied");
    // The gradient adds a token's k rows, as combining with weights 1 does: in f32 and one rounding, but MLX adds in the dtype of x.
    const Values ones(tokens * k, 1.0);
    const auto sum = oracle::combine_rows(doubles(g), ones, want, k, width), terms = oracle::combine_rows(absolute(doubles(g)), ones, want, k, width);
    Values bound;
    for (std::size_t i = 0; i < sum.size(); ++i) {
      bound.push_back(on_mlx(dtype) ? terms[i] * k * unit(dtype) : terms[i] * k * kF32 * 1.01 + std::abs(sum[i]) * unit(dtype));
    }
    expect_close(result.second, sum, bound, "gradient");
  }
}

TEST_P(Moe, CombinesWithGradients) {
  for (auto dtype : kDtypes) {
    for (auto weight_dtype : {mx::float32, dtype}) {
      const auto y = normal({tokens * k, width}, dtype, 1), w = normal({tokens, k}, weight_dtype, 2), g = normal({tokens, width}, dtype, 3);
      const auto yd = doubles(y), wd = doubles(w), gd = doubles(g);
      const auto result = mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{combine_rows(in[0], in[1], routing, k)}; }, {y, w}, {g});
      // Forward: k products and sums in f32, one rounding. dy: one product, one rounding. dw: a dot product of `width` terms.
      const auto bound = [&](const Values& value, const Values& terms, double f32, mx::Dtype rounded) {
        Values b(value.size());
        for (std::size_t i = 0; i < b.size(); ++i)
          b[i] = terms[i] * f32 * kF32 * 1.01 + std::abs(value[i]) * unit(rounded) + (rounded == mx::float16 ? 0x1p-25 : 0);
        return b;
      };
      const auto sum = oracle::combine_rows(yd, wd, want, k, width), terms = oracle::combine_rows(absolute(yd), absolute(wd), want, k, width);
      expect_close(result.first[0], sum, bound(sum, terms, k + 1, dtype), "combined");
      auto tolerance = [&](const Values& value, const Values& terms, double f32, mx::Dtype rounded) {
        auto b = bound(value, terms, f32, rounded);
        for (auto& x : b) x += kDifference;
        return b;
      };
      const auto dy = numeric_gradient([&](const Values& v) { return oracle::combine_rows(v, wd, want, k, width); }, yd, gd);
      const auto dw = numeric_gradient([&](const Values& v) { return oracle::combine_rows(yd, v, want, k, width); }, wd, gd);
      const auto dw_terms = [&] {
        Values t(wd.size(), 0.0);
        for (int r = 0; r < tokens * k; ++r) {
          for (int i = 0; i < width; ++i) t[want.order[r]] += std::abs(yd[r * width + i] * gd[want.order[r] / k * width + i]);
        }
        return t;
      }();
      expect_close(result.second[0], dy, tolerance(dy, absolute(dy), 1, dtype), "dy");
      expect_close(result.second[1], dw, tolerance(dw, dw_terms, width + 1, weight_dtype), "dweights");
      const auto only_w = mx::vjp([&](const mx::array& w) { return combine_rows(y, w, routing, k); }, w, g).second;
      EXPECT_TRUE(same_bytes(only_w, result.second[1]));
    }
  }
}

TEST(Moe, DoesNotDependOnThreads) {
  const int tokens = 200, k = 4, width = 130;
  const auto chosen = choices(tokens, k, 9);
  const auto routing = sort_by_expert(mx::array(chosen.data(), {tokens, k}, mx::int32), 9);
  const auto y = normal({tokens * k, width}, mx::bfloat16, 1), w = normal({tokens, k}, mx::float32, 2), x = normal({tokens, width}, mx::bfloat16, 3);
  expect_thread_independent([&] {
    auto results = mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{combine_rows(in[0], in[1], routing, k)}; }, {y, w}, {x}).second;
    results.push_back(combine_rows(y, w, routing, k));
    results.push_back(mx::vjp([&](const mx::array& x) { return gather_rows(x, routing, k); }, x, y).second);
    return results;
  });
}

TEST(Moe, RefusesWhatDisagrees) {
  const auto experts = mx::array({0, 1, 2, 1}, {2, 2});
  const auto routing = sort_by_expert(experts, 3);
  EXPECT_THROW(gather_rows(normal({3, 4}, mx::float32, 1), routing, 2), std::invalid_argument);
  EXPECT_THROW(combine_rows(normal({4, 4}, mx::float32, 1), normal({4, 1}, mx::float32, 2), routing, 2), std::invalid_argument);
  EXPECT_THROW(sort_by_expert(mx::astype(experts, mx::int64), 3), std::invalid_argument);
  if (cpu_kernels()) EXPECT_THROW(mx::eval(sort_by_expert(experts, 2).order), std::out_of_range);
}

}  // namespace
}  // namespace lquant::kernels
