// A permutation must be one, be the same everywhere, and prefer none.
#include "base/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

namespace lquant {
namespace {

TEST(Permutation, HoldsEveryIndexOnce) {
  for (const std::size_t n : {0, 1, 2, 5, 1000}) {
    auto order = permutation(n, 42);
    ASSERT_EQ(order.size(), n);
    std::sort(order.begin(), order.end());
    for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(order[i], i);
  }
}

TEST(Permutation, FollowsTheSeed) {
  EXPECT_EQ(permutation(100, 7), permutation(100, 7));
  EXPECT_NE(permutation(100, 7), permutation(100, 8));
}

// The C++ standard fixes the numbers of mt19937_64, and one draw decides the permutation of two.
TEST(Permutation, OfTwoIsTheParityOfTheFirstDraw) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 engine(seed);
    const bool stays = engine() % 2 == 1;
    EXPECT_EQ(permutation(2, seed)[0], stays ? 0u : 1u) << seed;
  }
}

// 24 outcomes, 24000 seeds: chi-squared with 23 degrees of freedom exceeds 58.6 with a probability of 6e-5 were the seeds random;
// they are fixed, so the test always gives the same answer.
TEST(Permutation, PrefersNoOrder) {
  std::map<std::vector<std::size_t>, int> count;
  for (std::uint64_t seed = 0; seed < 24'000; ++seed) ++count[permutation(4, seed)];
  EXPECT_EQ(count.size(), 24u);
  double chi_squared = 0;
  for (const auto& entry : count) chi_squared += (entry.second - 1000.0) * (entry.second - 1000.0) / 1000.0;
  EXPECT_LT(chi_squared, 58.6);
}

}  // namespace
}  // namespace lquant
