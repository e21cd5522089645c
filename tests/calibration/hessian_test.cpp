#include "calibration/hessian.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>

#include "kernels/moments.h"

namespace lquant::calibration {
namespace {

mx::array numbers(const mx::Shape& shape, unsigned seed) {
  auto x = mx::random::normal(shape, mx::float32, mx::random::key(seed));
  x.eval();
  return x;
}

bool same(const mx::array& a, const mx::array& b) { return mx::array_equal(a, b).item<bool>(); }

TEST(HessianStore, AddsBatchesUp) {
  HessianStore store;
  const auto a = numbers({2, 3, 8}, 1), b = numbers({2, 3, 8}, 2), reference = numbers({2, 3, 8}, 3);
  store.add("q", a, nullptr, &reference, nullptr);
  store.add("q", b, nullptr, &reference, nullptr);
  const auto& found = store.of("q");
  EXPECT_EQ(found.tokens, 12);
  EXPECT_TRUE(same(found.moment, mx::add(kernels::gram(a), kernels::gram(b))));
  const auto flat = [](const mx::array& x) { return mx::reshape(x, {-1, 8}); };
  EXPECT_TRUE(same(*found.shift, mx::add(kernels::shift_moment(flat(reference), flat(a)), kernels::shift_moment(flat(reference), flat(b)))));
}

// Squares of f16's numbers leave its range, and sums of a few tokens too: both are f32.
TEST(HessianStore, SumsWhatF16CannotHold) {
  for (const auto dtype : {mx::float32, mx::bfloat16, mx::float16}) {
    HessianStore store;
    const auto x = mx::full({3, 8}, 4096.0f, dtype), small = mx::full({3, 8}, std::ldexp(1.0f, -14), dtype);
    const auto reference = mx::full({3, 8}, 8192.0f, dtype);
    store.add("large", x, nullptr, &reference, nullptr);
    store.add("small", small, nullptr, nullptr, nullptr);
    EXPECT_TRUE(same(store.of("large").moment, mx::full({8, 8}, 3 * 4096.0f * 4096)));
    EXPECT_TRUE(same(*store.of("large").shift, mx::full({8, 8}, 3 * 4096.0f * 4096)));
    EXPECT_TRUE(same(store.of("small").moment, mx::full({8, 8}, 3 * std::ldexp(1.0f, -28))));
  }
}

TEST(HessianStore, OneArrayIsSummedOnce) {
  HessianStore store;
  for (unsigned batch = 0; batch < 3; ++batch) {
    const auto h = numbers({4, 8}, batch), other = numbers({4, 16}, 10 + batch);
    for (const char* path : {"q", "k", "v"}) store.add(path, h, nullptr, nullptr, nullptr);
    store.add("o", other, nullptr, nullptr, nullptr);
  }
  EXPECT_EQ(&store.of("k"), &store.of("q"));
  EXPECT_EQ(store.of("v").tokens, 12);
  EXPECT_EQ(store.of("o").moment.shape(0), 16);
}

TEST(HessianStore, ArraysThatAreGoneAreNotTakenForNewOnes) {
  // Each input dies before the next one is made, which may then lie in its place.
  HessianStore store;
  for (int i = 0; i < 8; ++i) store.add("linear" + std::to_string(i), numbers({4, 8 + i}, i), nullptr, nullptr, nullptr);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(store.of("linear" + std::to_string(i)).moment.shape(0), 8 + i);
}

TEST(HessianStore, PaddingDoesNotCount) {
  HessianStore store;
  const auto x = numbers({1, 4, 8}, 1);
  const mx::array rows({0, 2}, {2}, mx::int32);
  store.add("q", x, nullptr, nullptr, &rows);
  EXPECT_EQ(store.of("q").tokens, 2);
  EXPECT_TRUE(same(store.of("q").moment, kernels::gram(mx::take(mx::reshape(x, {4, 8}), rows, 0))));
}

TEST(HessianStore, EachExpertHasItsOwn) {
  HessianStore store;
  const auto rows = numbers({5, 8}, 1);
  const model::ExpertRows whose{mx::array({0, 2, 2, 5}, {4}, mx::int32), mx::array({0, 2, 1, 2, 4}, {5}, mx::int32)};
  store.add("experts", rows, &whose, nullptr, nullptr);
  store.add("experts", rows, &whose, nullptr, nullptr);
  store.add("others", rows, &whose, nullptr, nullptr);
  EXPECT_TRUE(store.by_expert("experts"));
  EXPECT_EQ(store.owner("others"), "experts");
  const auto& found = store.experts("others");
  ASSERT_EQ(found.experts(), 3);
  const std::vector<double> tokens{4, 0, 6};
  for (int e = 0; e < 3; ++e) {
    EXPECT_EQ(found.tokens(e), tokens[e]);
    EXPECT_EQ(found.of(e).tokens, tokens[e]);
  }
  EXPECT_TRUE(same(found.of(1).moment, mx::zeros({8, 8})));
  const auto last = kernels::gram(mx::slice(rows, {2, 0}, {5, 8}));
  EXPECT_TRUE(same(found.of(2).moment, mx::add(last, last)));
}

TEST(HessianStore, PaddingDoesNotCountForExperts) {
  const auto source = numbers({5, 8}, 1);
  const mx::array of_row({0, 2, 3, 2, 4}, {5}, mx::int32), counted({0, 2}, {2}, mx::int32);
  const auto rows = mx::take(source, of_row, 0);
  // With a source, and with their rows alone.
  for (const auto& from : {std::optional<mx::array>(), std::optional(source)}) {
    HessianStore store;
    const model::ExpertRows whose{mx::array({0, 2, 3, 5}, {4}, mx::int32), of_row, from};
    store.add("experts", rows, &whose, nullptr, &counted);
    const auto& found = store.experts("experts");
    ASSERT_EQ(found.experts(), 3);
    const auto cut = [&](int begin, int end) { return kernels::gram(mx::slice(rows, {begin, 0}, {end, 8})); };
    EXPECT_EQ(found.of(0).tokens, 2);
    EXPECT_TRUE(same(found.of(0).moment, cut(0, 2)));
    EXPECT_EQ(found.of(1).tokens, 0);
    EXPECT_TRUE(same(found.of(1).moment, mx::zeros({8, 8})));
    EXPECT_EQ(found.of(2).tokens, 1);
    EXPECT_TRUE(same(found.of(2).moment, cut(3, 4)));
    // All of them when none is padding.
    HessianStore all;
    all.add("experts", rows, &whose, nullptr, nullptr);
    EXPECT_TRUE(same(all.experts("experts").of(2).moment, cut(3, 5)));
  }
}

TEST(HessianStore, WhatWasNeverSeenIsAnError) {
  HessianStore store;
  EXPECT_FALSE(store.has("q"));
  EXPECT_THROW(store.of("q"), std::invalid_argument);
  EXPECT_THROW(store.experts("q"), std::invalid_argument);
  store.add("q", numbers({2, 8}, 1), nullptr, nullptr, nullptr);
  EXPECT_THROW(store.experts("q"), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::calibration
