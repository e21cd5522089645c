#include "kernels/wkv.h"

#include <algorithm>
#include <array>

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_wkv.h"

namespace lquant::kernels {
namespace {

using namespace testing;

struct Case {
  Wkv in;
  oracle::WkvInput values;
};

/// Inputs as the model makes them: a a unit vector's negative, b that vector times rates in (0, 1), w in (0.545, 1).
Case make(int batch, int tokens, int heads, int width, bool segments, bool first) {
  const mx::Shape shape = {batch, tokens, heads, width};
  const auto drawn = normal(shape, mx::float32, 5);
  const auto direction = mx::divide(drawn, mx::sqrt(mx::sum(mx::square(drawn), -1, true)));
  const auto w = mx::exp(mx::multiply(mx::array(-0.606531f), mx::sigmoid(normal(shape, mx::float32, 2, 3))));
  Case made{{normal(shape, mx::float32, 1), w, normal(shape, mx::float32, 3), normal(shape, mx::float32, 4), mx::negative(direction),
             mx::multiply(direction, mx::sigmoid(normal(shape, mx::float32, 6)))},
            {batch, tokens, heads, width}};
  if (segments) {  // texts of 1, 2, 3 … tokens
    std::vector<int> numbers;
    for (int b = 0; b < batch; ++b)
      for (int t = 0; t < tokens; ++t) numbers.push_back(static_cast<int>(std::sqrt(2.0 * t + b)) % 3);
    made.in.segments = mx::array(numbers.data(), {batch, tokens}, mx::int32);
    made.values.segments = numbers;
  }
  if (first) {
    made.in.state = normal({batch, heads, width, width}, mx::float32, 7);
    made.values.first = doubles(*made.in.state);
  }
  auto& v = made.values;
  v.r = doubles(made.in.r), v.w = doubles(made.in.w), v.k = doubles(made.in.k);
  v.v = doubles(made.in.v), v.a = doubles(made.in.a), v.b = doubles(made.in.b);
  return made;
}

/// The largest value times some units: the transition shrinks what it meets (‖diag(w) − κ (κ ⊙ rate)ᵀ‖ ≤ 1 up to a few), so an error of a token is
/// not amplified; each of the tokens that a state remembers (w ≤ 1: all of a hundred) adds sums over width and chunk.
Values bound(const Values& want, int tokens, int width) {
  double largest = 0;
  for (const double v : want) largest = std::max(largest, std::abs(v));
  return Values(want.size(), largest * kF32 * (tokens + 16) * (width + 16));
}

TEST(Wkv, IsTheRecurrence) {
  for (const auto& [batch, tokens, heads, width] : {std::array{1, 1, 2, 3}, {2, 7, 1, 4}, {1, 16, 2, 8}, {2, 17, 2, 5}, {1, 100, 2, 16}})
    for (const bool segments : {false, true})
      for (const bool first : {false, true}) {
        if (segments && first) continue;
        const auto made = make(batch, tokens, heads, width, segments, first);
        const auto want = oracle::wkv(made.values);
        const auto [y, state] = wkv(made.in);
        expect_close(y, want.y, bound(want.y, tokens, width), "y");
        expect_close(state, want.state, bound(want.state, tokens, width), "state");
      }
}

TEST(Wkv, GradientsAreDifferences) {
  for (const bool segments : {false, true}) {
    const auto made = make(1, 20, 2, 3, segments, !segments);
    const auto to_y = normal({1, 20, 2, 3}, mx::float32, 8), to_state = normal({1, 2, 3, 3}, mx::float32, 9);
    auto cotangent = doubles(to_y);
    for (const double v : doubles(to_state)) cotangent.push_back(v);
    std::vector<mx::array> inputs = {made.in.r, made.in.w, made.in.k, made.in.v, made.in.a, made.in.b};
    if (made.in.state) inputs.push_back(*made.in.state);
    const auto got = mx::vjp(
        [&](const std::vector<mx::array>& in) {
          Wkv one{in[0], in[1], in[2], in[3], in[4], in[5], made.in.segments};
          if (in.size() > 6) one.state = in[6];
          const auto [y, state] = wkv(one);
          return std::vector<mx::array>{y, state};
        },
        inputs, {to_y, to_state});
    using In = oracle::WkvInput;
    const std::vector<Values In::*> fields = {&In::r, &In::w, &In::k, &In::v, &In::a, &In::b, &In::first};
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto want = numeric_gradient(
          [&](const Values& one) {
            auto in = made.values;
            in.*fields[i] = one;
            auto out = oracle::wkv(in);
            out.y.insert(out.y.end(), out.state.begin(), out.state.end());
            return out.y;
          },
          made.values.*fields[i], cotangent);
      // Through 1 / W the gradient to w has terms 2¹⁶ / 2 times larger than its sum at most, in the middle of a chunk a few dozen times.
      auto tolerance = bound(want, 20, 3);
      for (auto& v : tolerance) v = 16 * v + kDifference * 10;
      expect_close(got.second[i], want, tolerance, "gradient");
    }
  }
}

TEST(Wkv, RefusesWhatDoesNotFit) {
  const auto made = make(1, 4, 2, 3, false, false);
  auto in = made.in;
  in.w = mx::zeros({1, 4, 2, 4});
  EXPECT_THROW(wkv(in), std::invalid_argument);
  in = made.in;
  in.k = mx::astype(in.k, mx::bfloat16);
  EXPECT_THROW(wkv(in), std::invalid_argument);
  in = made.in;
  in.state = mx::zeros({1, 2, 3, 4});
  EXPECT_THROW(wkv(in), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
