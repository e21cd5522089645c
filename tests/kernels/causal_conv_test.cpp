#include "kernels/causal_conv.h"

#include "kernels/causal_conv_paths.h"
#include "kernels/elementwise_testing.h"
#include "oracle/kernels_causal_conv.h"

namespace lquant::kernels {
namespace {

using namespace testing;
using oracle::ConvSize;
using Function = decltype(&causal_conv);

struct Case {
  const char* name;
  ConvSize size;
  int text = 0;  ///< tokens of each text in a row; 0: no segments
};

const std::vector<Case> kCases = {{"one token", {1, 1, 3, 4}},
                                  {"fewer tokens than taps", {2, 2, 5, 4}},
                                  {"one tap", {1, 5, 7, 1}},
                                  {"a block of channels", {2, 9, 64, 3}},
                                  {"blocks and a rest", {1, 20, 150, 4}},
                                  {"texts", {2, 20, 70, 4}, 7},
                                  {"texts shorter than the taps", {1, 11, 3, 5}, 2}};

class CausalConv : public ::testing::TestWithParam<std::tuple<Case, Function>> {
 protected:
  Case c = std::get<0>(GetParam());
  Function function = std::get<1>(GetParam());
  mx::Shape shape{static_cast<int>(c.size.batch), static_cast<int>(c.size.tokens), static_cast<int>(c.size.channels)};
  mx::array taps = normal({static_cast<int>(c.size.channels), static_cast<int>(c.size.taps)}, mx::float32, 1);
  std::vector<std::int32_t> numbers() const {
    std::vector<std::int32_t> all;
    for (std::int64_t b = 0; c.text > 0 && b < c.size.batch; ++b)
      for (std::int64_t t = 0; t < c.size.tokens; ++t) all.push_back(static_cast<std::int32_t>((t + b) / c.text % 2));
    return all;
  }
  std::optional<mx::array> segments() const {
    const auto all = numbers();
    return all.empty() ? std::nullopt : std::optional(mx::array(all.data(), {shape[0], shape[1]}, mx::int32));
  }
};

INSTANTIATE_TEST_SUITE_P(Cases, CausalConv, ::testing::Combine(::testing::ValuesIn(kCases), ::testing::Values(&causal_conv, &causal_conv_mlx)));

TEST_P(CausalConv, MatchesOracle) {
  for (auto dtype : kDtypes) {
    const auto x = normal(shape, dtype, 2);
    Values magnitudes, bound;
    const auto want = oracle::causal_conv(c.size, doubles(x), doubles(taps), numbers(), &magnitudes);
    // As many roundings of products and sums as there are taps, and that of the result.
    for (std::size_t i = 0; i < want.size(); ++i)
      bound.push_back(2 * static_cast<double>(c.size.taps) * kF32 * magnitudes[i] + std::abs(want[i]) * unit(dtype) + tiny(dtype));
    const auto y = function(x, taps, segments());
    EXPECT_EQ(y.dtype(), dtype);
    expect_close(y, want, bound, c.name);
  }
}

TEST_P(CausalConv, GradientsMatchFiniteDifferences) {
  const auto x = normal(shape, mx::float32, 2), cotangent = normal(shape, mx::float32, 3);
  const auto gradients =
      mx::vjp([&](const std::vector<mx::array>& in) { return std::vector{function(in[0], in[1], segments())}; }, {x, taps}, {cotangent}).second;
  const auto of_x =
      numeric_gradient([&](const Values& v) { return oracle::causal_conv(c.size, v, doubles(taps), numbers()); }, doubles(x), doubles(cotangent));
  const auto of_taps =
      numeric_gradient([&](const Values& v) { return oracle::causal_conv(c.size, doubles(x), v, numbers()); }, doubles(taps), doubles(cotangent));
  // The function is linear in each, so differences err by rounding alone; sums have as many terms as tokens, of size 1 to 16.
  const auto bound = [&](const Values& v) {
    return Values(v.size(), kDifference + 16.0 * static_cast<double>(c.size.batch * c.size.tokens) * kF32 * 4);
  };
  expect_close(gradients[0], of_x, bound(of_x), c.name);
  expect_close(gradients[1], of_taps, bound(of_taps), c.name);
}

TEST(CausalConv, RefusesWhatDoesNotFit) {
  const auto x = mx::zeros({2, 3, 4});
  EXPECT_NO_THROW(causal_conv(x, mx::zeros({4, 2})));
  EXPECT_THROW(causal_conv(x, mx::zeros({3, 2})), std::invalid_argument);
  EXPECT_THROW(causal_conv(mx::zeros({3, 4}), mx::zeros({4, 2})), std::invalid_argument);
  EXPECT_THROW(causal_conv(x, mx::zeros({4, 2}), mx::zeros({2, 3})), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
