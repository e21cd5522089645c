#include "calibration/coverage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <set>

namespace lquant::calibration {
namespace {

std::int64_t tokens_of(const Candidates& c, const std::vector<std::size_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), std::int64_t{0}, [&](auto sum, auto row) { return sum + c.lengths[row]; });
}

/// From the definition.
Shortage slow_shortage(const Candidates& c, const std::vector<std::size_t>& rows, int floor) {
  Shortage all;
  for (std::size_t e = 0; e < c.reached[0].size(); ++e) {
    std::int64_t seen = 0;
    for (const auto row : rows) seen += c.reached[row][e];
    if (seen < floor) all.experts += 1, all.tokens += floor - seen;
  }
  return all;
}

bool within(const Candidates& c, const std::vector<std::size_t>& rows, std::int64_t tokens) {
  return std::abs(tokens_of(c, rows) - tokens) <= *std::max_element(c.lengths.begin(), c.lengths.end());
}

/// Rows of 1 to 8 tokens, each of which goes to two of the experts; experts differ in how likely they are.
Candidates random_candidates(int rows, int experts, unsigned seed) {
  std::mt19937 random(seed);
  Candidates c;
  for (int r = 0; r < rows; ++r) {
    c.lengths.push_back(1 + static_cast<int>(random() % 8));
    c.reached.emplace_back(experts);
    for (int t = 0; t < c.lengths[r]; ++t) {
      const int first = static_cast<int>(random() % (1 + random() % experts));
      ++c.reached[r][first];
      ++c.reached[r][(first + 1 + random() % (experts - 1)) % experts];
    }
  }
  return c;
}

std::vector<std::size_t> first_rows(std::size_t count) {
  std::vector<std::size_t> rows(count);
  std::iota(rows.begin(), rows.end(), std::size_t{0});
  return rows;
}

TEST(CoverageTest, NoExchangeOfAPairHelpsFurtherAndNoSetIsBeatenThatCannotBe) {
  int improved = 0, best_found = 0, cases = 0;
  for (unsigned seed = 0; seed < 200; ++seed) {
    const auto c = random_candidates(9, 6, seed);
    const auto start = first_rows(4);
    const auto tokens = tokens_of(c, start);
    const int floor = 1 + static_cast<int>(seed % 8);
    const auto before = slow_shortage(c, start, floor);
    EXPECT_EQ(shortage(c, start, floor), before);
    const auto rows = exchange_rows(c, start, floor, tokens);
    const auto after = slow_shortage(c, rows, floor);
    ASSERT_EQ(rows.size(), start.size());
    EXPECT_EQ(std::set<std::size_t>(rows.begin(), rows.end()).size(), rows.size());
    EXPECT_TRUE(within(c, rows, tokens));
    EXPECT_LE(after, before);
    for (std::size_t place = 0; place < rows.size(); ++place)
      for (std::size_t in = 0; in < c.lengths.size(); ++in) {
        auto other = rows;
        other[place] = in;
        if (std::find(rows.begin(), rows.end(), in) == rows.end() && within(c, other, tokens)) EXPECT_GE(slow_shortage(c, other, floor), after);
      }
    auto best = before;
    for (unsigned set = 0; set < 1u << 9; ++set) {
      std::vector<std::size_t> chosen;
      for (std::size_t row = 0; row < 9; ++row)
        if (set >> row & 1) chosen.push_back(row);
      if (chosen.size() == rows.size() && within(c, chosen, tokens)) best = std::min(best, slow_shortage(c, chosen, floor));
    }
    EXPECT_GE(after, best);
    improved += after < before;
    best_found += best < before && after == best;
    cases += best < before;
  }
  EXPECT_GT(improved, 0);
  EXPECT_GT(2 * best_found, cases);
}

TEST(CoverageTest, RowsThatAloneReachAnExpertComeIn) {
  // Twelve rows for expert 0, of which eight are taken; of experts 1 to 3, one row each.
  Candidates c;
  for (int r = 0; r < 15; ++r) {
    c.lengths.push_back(10);
    c.reached.push_back({10, 0, 0, 0});
    if (r >= 12) c.reached[r] = {0, r == 12 ? 10 : 0, r == 13 ? 10 : 0, r == 14 ? 10 : 0};
  }
  EXPECT_EQ(shortage(c, first_rows(8), 10), (Shortage{3, 30}));
  const auto rows = exchange_rows(c, first_rows(8), 10, 80);
  EXPECT_EQ(shortage(c, rows, 10), Shortage{});
  // No more than is needed, each in the first place whose row is not missed.
  EXPECT_EQ(rows, (std::vector<std::size_t>{12, 13, 14, 3, 4, 5, 6, 7}));
}

TEST(CoverageTest, NothingChangesWhereNothingHelps) {
  const auto c = random_candidates(9, 6, 1);
  EXPECT_EQ(exchange_rows(c, first_rows(9), 100, tokens_of(c, first_rows(9))), first_rows(9));  // no others
  auto far = c;
  for (auto& row : far.reached) row[5] = 0;
  for (auto& row : far.reached)
    for (int e = 0; e < 5; ++e) row[e] = 8;
  EXPECT_EQ(exchange_rows(far, first_rows(4), 8, tokens_of(far, first_rows(4))), first_rows(4));  // an expert that no row reaches
  auto long_ones = c;
  for (std::size_t r = 4; r < 9; ++r) long_ones.lengths[r] = 50;
  for (std::size_t r = 0; r < 4; ++r) long_ones.lengths[r] = 1;
  // One may come in, for the tokens stay within 50 of the 4; two may not.
  const auto rows = exchange_rows(long_ones, first_rows(4), 1000, 4);
  EXPECT_EQ(std::count_if(rows.begin(), rows.end(), [](auto row) { return row >= 4; }), 1);
}

}  // namespace
}  // namespace lquant::calibration
