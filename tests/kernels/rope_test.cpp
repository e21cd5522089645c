#include "kernels/rope.h"

#include <algorithm>

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_rope.h"

namespace lquant::kernels {
namespace {

using namespace testing;

struct Case {
  int batch, length, heads, width, pairs, offset;
  float magnitude;
  bool interleaved, own_positions;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (bool interleaved : {false, true}) {
    all.push_back({1, 1, 1, 2, 1, 5, 1.0f, interleaved, false});
    all.push_back({2, 3, 3, 64, 32, 0, 1.0f, interleaved, false});
    all.push_back({1, 5, 2, 80, 16, 100, 1.0f, interleaved, false});      // partial rotary
    all.push_back({2, 3, 1, 63, 31, 7, 1.25f, interleaved, false});       // odd widths, magnitude
    all.push_back({2, 4, 2, 18, 7, 0, 0.5f, interleaved, true});          // positions of each text
    all.push_back({1, 2, 1, 64, 32, 1 << 20, 1.0f, interleaved, false});  // far beyond where a sine is accurate without reduction
  }
  return all;
}

mx::array frequencies(int pairs) {
  std::vector<float> f(pairs);
  for (int i = 0; i < pairs; ++i) f[i] = std::pow(10000.0f, -static_cast<float>(i) / pairs);
  return mx::array(f.data(), {pairs}, mx::float32);
}

std::optional<mx::array> positions_of(const Case& c, std::vector<int>& list) {
  list.clear();
  for (int t = 0; t < c.batch * c.length; ++t) list.push_back(c.own_positions ? (t * 37 + 11) % 50 : c.offset + t % c.length);
  if (!c.own_positions) return std::nullopt;
  return mx::array(list.data(), {c.batch, c.length}, mx::int32);
}

/// The angle is a product rounded once here, thrice where MLX takes reciprocals of frequencies, so off by 3·|angle| units. Its reduction
/// is good to an ulp of π (4 units), sine and cosine to 3 ulp (6 units), the two products and the sum to 3: 16 in all. Then one rounding to
/// the dtype.
Values tolerance(const Case& c, const Values& x, const Values& want, const Values& inv_freq, const std::vector<int>& positions, double u) {
  Values result(want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    const int feature = static_cast<int>(i % c.width);
    if (feature >= 2 * c.pairs) continue;  // copied: exact
    const int f = c.interleaved ? feature / 2 : feature % c.pairs;
    const std::size_t start = i - feature, first = start + (c.interleaved ? 2 * f : f), second = start + (c.interleaved ? 2 * f + 1 : f + c.pairs);
    const double angle = positions[i / c.width / c.heads] * inv_freq[f];
    const double f32 = (3 * std::abs(angle) + 16) * kF32 * c.magnitude * (std::abs(x[first]) + std::abs(x[second]));
    result[i] = f32 * (1 + u) + std::abs(want[i]) * u;
  }
  return result;
}

/// The same for the path that computes a dtype: MLX's fast op may work in the dtype of x beyond the angle, with a rounding of cos, sin, the
/// products and the sum each.
Values tolerance_in(mx::Dtype dtype, const Case& c, const mx::array& x, const Values& want, const mx::array& inv_freq,
                    const std::vector<int>& positions) {
  const bool coarse = on_mlx(dtype) && dtype != mx::float32;
  const auto size = doubles(x);
  auto bound = tolerance(c, size, want, doubles(inv_freq), positions, coarse ? 0 : unit(dtype));
  if (!coarse) return bound;
  const double largest = std::abs(*std::max_element(size.begin(), size.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }));
  for (auto& b : bound) b += 4 * unit(dtype) * 2 * largest * c.magnitude;
  return bound;
}

TEST(Rope, MatchesOracle) {
  for (const auto& c : cases()) {
    for (auto dtype : kDtypes) {
      const auto x = normal({c.batch, c.length, c.heads, c.width}, dtype, 1), inv_freq = frequencies(c.pairs);
      std::vector<int> list;
      const auto positions = positions_of(c, list);
      const auto want = oracle::rope(doubles(x), doubles(inv_freq), list, c.heads, c.width, c.magnitude, c.interleaved);
      const auto got = rope(x, inv_freq, c.offset, c.magnitude, c.interleaved, positions);
      EXPECT_EQ(got.dtype(), dtype);
      expect_close(got, want, tolerance_in(dtype, c, x, want, inv_freq, list), "rope");
    }
  }
}

TEST(Rope, GradientMatchesFiniteDifferences) {
  for (const auto& c : cases()) {
    for (auto dtype : kDtypes) {
      const mx::Shape shape{c.batch, c.length, c.heads, c.width};
      const auto x = normal(shape, dtype, 1), g = normal(shape, dtype, 2), inv_freq = frequencies(c.pairs);
      std::vector<int> list;
      const auto positions = positions_of(c, list);
      const auto f = [&](const Values& v) { return oracle::rope(v, doubles(inv_freq), list, c.heads, c.width, c.magnitude, c.interleaved); };
      const auto want = numeric_gradient(f, doubles(x), doubles(g));
      auto bound = tolerance_in(dtype, c, g, want, inv_freq, list);
      for (auto& b : bound) b += kDifference;
      const auto got = mx::vjp(
          [&](const std::vector<mx::array>& in) { return std::vector{rope(in[0], inv_freq, c.offset, c.magnitude, c.interleaved, positions)}; }, {x},
          {g});
      expect_close(got.second[0], want, bound, "gradient");
    }
  }
}

// Features beyond 2·F are none of the rotation's, whatever its layout, magnitude or positions: they come through, and their gradient back, to the
// bit.
TEST(Rope, LeavesTheRestAsItIs) {
  const mx::Shape shape{2, 3, 2, 37};
  for (auto dtype : kDtypes) {
    const auto x = normal(shape, dtype, 1), g = normal(shape, dtype, 2);
    const auto rest = [&](const mx::array& y) { return mx::slice(y, {0, 0, 0, 18}, shape); };
    const auto rotated = [&](const mx::array& y) { return mx::slice(y, {0, 0, 0, 0}, {2, 3, 2, 18}); };
    const std::vector<int> list = {4, 0, 9, 1, 2, 3};
    for (const auto& positions : {std::optional<mx::array>(), std::optional(mx::array(list.data(), {2, 3}, mx::int32))}) {
      for (bool interleaved : {false, true}) {
        for (float magnitude : {1.0f, 1.25f}) {
          const auto f = [&](const std::vector<mx::array>& in) {
            return std::vector{rope(in[0], frequencies(9), 5, magnitude, interleaved, positions)};
          };
          const auto [out, gradient] = mx::vjp(f, {x}, {g});
          EXPECT_TRUE(same_bytes(rest(out[0]), rest(x)));
          EXPECT_TRUE(same_bytes(rest(gradient[0]), rest(g)));
          EXPECT_FALSE(same_bytes(rotated(out[0]), rotated(x)));
          // What is rotated does not depend on what is not.
          EXPECT_TRUE(same_bytes(rotated(out[0]), f({rotated(x)})[0]));
        }
      }
    }
  }
}

// An angle of a whole number of radians is exact in f32, so nothing but the reduction and the sine can err, at any position.
TEST(Rope, IsExactFarOut) {
  const auto x = normal({1, 4, 1, 2}, mx::float32, 1), one = mx::ones({1}, mx::float32);
  const std::vector<int> list = {1 << 20, 999999, 131071, 65537};
  const auto want = oracle::rope(doubles(x), {1.0}, list, 1, 2, 1, false), size = doubles(x);
  Values bound(want.size());
  for (std::size_t i = 0; i < bound.size(); ++i) bound[i] = 16 * kF32 * (std::abs(size[i - i % 2]) + std::abs(size[i - i % 2 + 1]));
  expect_close(rope(x, one, 0, 1, false, mx::array(list.data(), {1, 4}, mx::int32)), want, bound, "far out");
}

TEST(Rope, DoesNotDependOnThreads) {
  const auto x = normal({1, 300, 9, 64}, mx::bfloat16, 1), inv_freq = frequencies(32);
  expect_thread_independent([&] { return std::vector{rope(x, inv_freq, 3), rope(x, inv_freq, 3, 1.1f, true)}; });
}

TEST(Rope, RefusesWhatDisagrees) {
  const auto x = normal({1, 2, 1, 8}, mx::float32, 1);
  EXPECT_THROW(rope(x, frequencies(5), 0), std::invalid_argument);
  EXPECT_THROW(rope(mx::squeeze(x, 0), frequencies(4), 0), std::invalid_argument);
  EXPECT_THROW(rope(x, frequencies(4), 0, 1, false, mx::zeros({1, 3}, mx::int32)), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
