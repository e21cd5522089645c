#include "model/imports.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/rope.h"

namespace lquant::model {
namespace {

using Kind = Change::Kind;

mx::array drawn(const mx::Shape& shape, int seed) { return mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed)); }

float most_of(const mx::array& x) { return mx::max(mx::abs(x)).item<float>(); }

// Heads whose halves turn together give the scores of the same heads with neighbours that do; the rows behind them stay where they are.
TEST(Imports, RowsAreInterleavedHeadByHead) {
  constexpr int kHeads = 3, kHead = 8, kIn = 5, kRest = 7;
  const auto weight = drawn({kHeads * kHead + kRest, kIn}, 1);
  const Change change{.kind = Kind::interleave, .first = kHeads * kHead, .count = kHead};
  const auto turned = changed({change}, {weight});
  ASSERT_EQ(changed_shape({change}, {weight.shape()}), weight.shape());
  ASSERT_EQ(turned.shape(), weight.shape());
  const auto rest = [](const mx::array& x) { return mx::slice(x, {kHeads * kHead, 0}, {kHeads * kHead + kRest, kIn}); };
  EXPECT_TRUE(mx::array_equal(rest(turned), rest(weight)).item<bool>());

  const auto x = drawn({1, 6, kIn}, 2), inv_freq = mx::array({1.0f, 0.5f, 0.2f, 0.05f});
  const auto scores = [&](const mx::array& w, bool interleaved) {
    const auto heads = mx::slice(w, {0, 0}, {kHeads * kHead, kIn});
    const auto q = mx::reshape(mx::matmul(x, mx::transpose(heads)), {1, 6, kHeads, kHead});
    const auto at = mx::swapaxes(kernels::rope(q, inv_freq, 3, 1.0f, interleaved, std::nullopt), 1, 2);
    return mx::matmul(at, mx::swapaxes(at, -1, -2));
  };
  const auto wanted = scores(weight, false);
  EXPECT_LE(most_of(mx::subtract(scores(turned, true), wanted)), 20 * 0x1p-24f * most_of(wanted));
  EXPECT_GT(most_of(mx::subtract(scores(weight, true), wanted)), 0.1f * most_of(wanted));
  EXPECT_TRUE(mx::array_equal(changed({{.kind = Kind::interleave, .first = kHead, .count = kHead}}, {mx::slice(weight, {0, 0}, {kHead, kIn})}),
                              mx::slice(turned, {0, 0}, {kHead, kIn}))
                  .item<bool>());
  EXPECT_FALSE(changed_shape({change}, {mx::Shape{kHead, kIn}}));
}

// α² + β² = 1 (σ(−w) (1 + σ(w)) = (1 − β) (1 + β)), but for a gate so large that the floor holds.
TEST(Imports, AGateGivesTheFactorsOfAResidual) {
  const auto gate = mx::array({-3.0f, -0.3f, 0.0f, 0.15f, 0.6f, 9.0f}, {6});
  const Change alpha{.kind = Kind::gate_alpha, .factor = 0.3f, .floor = 1e-3f}, beta{.kind = Kind::gate_beta, .factor = 0.3f};
  const auto kept = changed({alpha}, {gate}), added = changed({beta}, {gate});
  EXPECT_FLOAT_EQ(mx::take(added, 2, 0).item<float>(), 0.5f);
  EXPECT_FLOAT_EQ(mx::take(added, 1, 0).item<float>(), 1 / (1 + std::exp(1.0f)));
  const auto squares = mx::add(mx::square(kept), mx::square(added));
  EXPECT_LE(most_of(mx::subtract(mx::slice(squares, {0}, {5}), mx::array(1.0f))), 8 * 0x1p-24f);
  EXPECT_FLOAT_EQ(mx::take(kept, 5, 0).item<float>(), std::sqrt(1e-3f));
  const auto halves = changed({alpha}, {mx::astype(gate, mx::bfloat16)});
  EXPECT_EQ(halves.dtype(), mx::float32);  // whatever the gate is stored in
}

TEST(Imports, OneIsAddedInF32AndRoundedOnce) {
  // 2^-8 + 2^-20 added to 1 lies above the middle of two bf16 numbers; the first of bf16 itself is the middle, and goes to the even one.
  const auto w = mx::array({0x1p-8f + 0x1p-20f, -1.0f, 0.25f}, {3});
  const auto made = changed({{Kind::add_one_bf16}}, {w});
  EXPECT_EQ(made.dtype(), mx::bfloat16);
  EXPECT_TRUE(mx::array_equal(mx::astype(made, mx::float32), mx::array({1 + 0x1p-7f, 0.0f, 1.25f}, {3})).item<bool>());
}

}  // namespace
}  // namespace lquant::model
