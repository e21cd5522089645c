#include "model/norm.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "model/ops/exact.h"

namespace lquant::model {
namespace {

// Norms of a few numbers in f32: a dozen roundings of 2^-24 each.
constexpr float kRounding = 12 * 0x1p-24f;

mx::array random(const mx::Shape& shape, int seed) { return mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed)); }

void expect_alike(const mx::array& got, const mx::array& want) {
  ASSERT_EQ(got.shape(), want.shape());
  EXPECT_LE(mx::max(mx::abs(mx::subtract(got, want))).item<float>(), kRounding * mx::max(mx::abs(want)).item<float>());
}

mx::array over_last(const mx::array& sum) { return mx::expand_dims(sum, -1); }

NormSpec norm_of(NormSpec::Kind kind) {
  NormSpec norm;
  norm.path = "n";
  norm.size = 6;
  norm.eps = 1e-3f;
  norm.kind = kind;
  return norm;
}

TEST(Norm, L2DividesByTheLengthOrByEps) {
  const auto norm = norm_of(NormSpec::Kind::l2);
  const auto x = random({2, 3, 6}, 1);
  expect_alike(normed({}, norm, x), mx::divide(x, over_last(mx::sqrt(mx::sum(mx::square(x), -1)))));
  const auto short_one = mx::multiply(x, mx::array(1e-6f));
  expect_alike(normed({}, norm, short_one), mx::divide(short_one, mx::array(norm.eps)));
}

TEST(Norm, AWeightIsUsedTimesItsFactor) {
  auto norm = norm_of(NormSpec::Kind::rms);
  norm.suffix = "";
  norm.factor = 0.25f;
  const auto x = random({2, 6}, 2), weight = random({6}, 3);
  const auto size = over_last(mx::sqrt(mx::add(mx::mean(mx::square(x), -1), mx::array(norm.eps))));
  expect_alike(normed({{"n", weight}}, norm, x), mx::multiply(mx::divide(x, size), mx::multiply(weight, mx::array(norm.factor))));
}

TEST(Norm, AWeightForEachHeadMayLieInOneTensorOrInMany) {
  const auto x = random({2, 5, 3, 6}, 4), weight = random({3, 6}, 5);
  auto rows = norm_of(NormSpec::Kind::layer), pieces = rows;
  rows.rows = 3;
  pieces.pieces = 3;
  Tensors tensors{{"n.weight", weight}};
  for (int head = 0; head < 3; ++head) tensors.insert({pieces.weight_name(head), mx::take(weight, head, 0)});
  const auto centred = mx::subtract(x, over_last(mx::mean(x, -1)));
  const auto size = over_last(mx::sqrt(mx::add(mx::mean(mx::square(centred), -1), mx::array(rows.eps))));
  const auto wanted = mx::multiply(weight, mx::divide(centred, size));
  expect_alike(normed(tensors, rows, x), wanted);
  expect_alike(normed(tensors, pieces, x), wanted);
}

TEST(Norm, AWeightMayMultiplyWhatIsNormed) {
  auto norm = norm_of(NormSpec::Kind::rms);
  norm.weighs_input = true;
  const auto x = random({2, 6}, 6), weight = random({6}, 7), weighed = mx::multiply(x, weight);
  const auto size = over_last(mx::sqrt(mx::add(mx::mean(mx::square(weighed), -1), mx::array(norm.eps))));
  expect_alike(normed({{"n.weight", weight}}, norm, x), mx::divide(weighed, size));
  const auto residual = random({2, 6}, 8);
  expect_alike(add_norm({{"n.weight", weight}}, norm, residual, x), mx::add(residual, mx::divide(weighed, size)));
}

// These numbers are what rounding to bf16 takes from others; a norm of what bf16 holds of one number alone would err by 2^-9 of it.
TEST(Norm, NumbersOfF32AreReadWhole) {
  auto norm = norm_of(NormSpec::Kind::rms);
  norm.reads_f32 = true;
  const auto x = random({2, 3, 6}, 9), weight = mx::astype(random({6}, 10), mx::bfloat16);
  const auto less = mx::subtract(x, mx::astype(mx::astype(x, mx::bfloat16), mx::float32));
  const auto size = over_last(mx::sqrt(mx::add(mx::mean(mx::square(less), -1), mx::array(norm.eps))));
  for (const auto dtype : {mx::float32, mx::bfloat16}) {
    const auto got = normed({{"n.weight", weight}}, norm, in_columns(less, kNumberColumns, dtype));
    EXPECT_EQ(got.dtype(), dtype);
    const auto want = mx::multiply(mx::divide(less, size), mx::astype(weight, mx::float32));
    const float near = dtype == mx::float32 ? kRounding : 0x1p-8f;
    EXPECT_LE(mx::max(mx::abs(mx::subtract(mx::astype(got, mx::float32), want))).item<float>(), near * mx::max(mx::abs(want)).item<float>());
  }
  norm.weight = false;
  expect_alike(normed({}, norm, in_columns(x, kNumberColumns, mx::float32)),
               mx::divide(x, over_last(mx::sqrt(mx::add(mx::mean(mx::square(x), -1), mx::array(norm.eps))))));
}

}  // namespace
}  // namespace lquant::model
