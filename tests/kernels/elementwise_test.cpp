#include "kernels/elementwise.h"

#include "kernels/elementwise_testing.h"

namespace lquant::kernels {
namespace {

using namespace testing;

TEST(Add, EqualsMlxAndPassesCotangentsThrough) {
  for (auto dtype : kDtypes) {
    for (int width : {1, 7, 63, 65, 576}) {
      const auto a = normal({3, width}, dtype, 1), b = normal({3, width}, dtype, 2), g = normal({3, width}, dtype, 3);
      const auto result = mx::vjp([](const std::vector<mx::array>& in) { return std::vector{kernels::add(in[0], in[1])}; }, {a, b}, {g});
      EXPECT_TRUE(same_bytes(result.first[0], mx::add(a, b)));
      EXPECT_TRUE(same_bytes(result.second[0], g));
      EXPECT_TRUE(same_bytes(result.second[1], g));
    }
  }
  const auto x = normal({2, 3}, mx::float32, 1);
  EXPECT_TRUE(same_bytes(kernels::add(mx::transpose(x), mx::transpose(x)), mx::add(mx::transpose(x), mx::transpose(x))));
  EXPECT_THROW(kernels::add(x, mx::transpose(x)), std::invalid_argument);
}

// Rounding, ties, infinities and NaN of the bf16 store are those of MLX's conversion: every bf16 value plus a few others.
TEST(Add, RoundsAsMlxDoes) {
  std::vector<std::uint16_t> bits(1 << 16);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  const auto all = mx::view(mx::array(bits.data(), {static_cast<int>(bits.size())}, mx::uint16), mx::bfloat16);
  for (float other : {0.0f, 1.0f, -1.00390625f, 3e38f, 1e-40f}) {
    const auto b = mx::full(all.shape(), mx::array(other, mx::bfloat16));
    const auto ours = kernels::add(all, b), theirs = mx::add(all, b);
    EXPECT_TRUE(mx::array_equal(ours, theirs, true).item<bool>()) << other;
  }
}

TEST(AddSquares, IsOneFusedStepOfASum) {
  for (auto dtype : kDtypes) {
    for (int width : {1, 7, 63, 65, 576}) {
      const auto sum = mx::square(normal({3, width}, mx::float32, 1)), x = normal({3, width}, dtype, 2);
      const auto got = add_squares(sum, x);
      EXPECT_EQ(got.dtype(), mx::float32);
      const auto s = doubles(sum), v = doubles(x);
      Values want, bound;
      for (std::size_t i = 0; i < s.size(); ++i) {
        want.push_back(s[i] + v[i] * v[i]);
        bound.push_back(2 * kF32 * want.back());  // the square and the sum are rounded once each, or both at once
      }
      expect_close(got, want, bound, "add_squares");
    }
  }
  expect_thread_independent([&] { return std::vector{add_squares(mx::ones({1111, 65}), normal({1111, 65}, mx::bfloat16, 1))}; });
  EXPECT_THROW(add_squares(mx::ones({2, 3}), mx::ones({3, 2})), std::invalid_argument);
  EXPECT_THROW(add_squares(mx::ones({2, 3}, mx::bfloat16), mx::ones({2, 3})), std::invalid_argument);
}

/// All terms are positive. On the CPU kernels a sum of any length has 32 in f32 and the rest in f64, and one rounding to f32; elsewhere the
/// error may grow with the number of rows.
TEST(SecondMoment, MatchesOracle) {
  for (auto dtype : kDtypes) {
    for (int rows : {1, 3, 33, 6000}) {
      const int width = 65;
      const auto x = normal({rows, 1, width}, dtype, rows);
      const auto v = doubles(x);
      Values want(width, 0.0), bound;
      for (std::size_t i = 0; i < v.size(); ++i) want[i % width] += v[i] * v[i];
      const double units = on_mlx(dtype) ? rows + 1 : std::min(rows, 32) + 1;
      for (double sum : want) bound.push_back(sum * units * kF32);
      const auto got = second_moment(x);
      EXPECT_EQ(got.dtype(), mx::float32);
      expect_close(got, want, bound, "second moment");
    }
  }
}

TEST(SecondMoment, HasNoGradientAndDoesNotDependOnThreads) {
  const auto x = normal({1111, 65}, mx::bfloat16, 1);
  expect_thread_independent([&] { return std::vector{second_moment(x)}; });
  const auto g = mx::vjp([](const mx::array& x) { return mx::add(mx::sum(second_moment(x)), mx::sum(x)); }, x, mx::array(1.0f)).second;
  EXPECT_TRUE(mx::all(mx::equal(g, mx::array(1.0f))).item<bool>());
}

}  // namespace
}  // namespace lquant::kernels
