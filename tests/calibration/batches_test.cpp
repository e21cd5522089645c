#include "calibration/batches.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <map>
#include <random>

#include "base/error.h"

namespace lquant::calibration {
namespace {

template <class T>
std::vector<T> values(mx::array a) {
  a = mx::contiguous(a);
  a.eval();
  return {a.data<T>(), a.data<T>() + a.size()};
}

std::vector<Example> random_examples(int count, int longest, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Example> examples(count);
  for (int i = 0; i < count; ++i) {
    const int length = 1 + static_cast<int>(random() % longest);
    for (int t = 0; t < length; ++t) examples[i].tokens.push_back(1 + 1000 * i + t);  // each token tells where it comes from
    examples[i].prompt = static_cast<int>(random() % (length + 1));
  }
  return examples;
}

/// Finds every token of every example in the batch and checks what stands beside it.
void expect_packed(const std::vector<Example>& examples, int max_tokens, bool mask_prompt, const Batch& batch) {
  const auto ids = values<std::int32_t>(batch.ids), segments = values<std::int32_t>(batch.segments), targets = values<std::int32_t>(batch.targets);
  const auto mask = values<float>(batch.mask), next_mask = values<float>(batch.next_mask);
  EXPECT_LE(batch.length(), max_tokens);
  std::map<int, std::size_t> place;
  double counted = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    counted += mask[i];
    if (segments[i] < 0) {
      EXPECT_EQ(mask[i] + next_mask[i] + ids[i] + targets[i], 0) << "padding";
      continue;
    }
    EXPECT_TRUE(place.insert({ids[i], i}).second) << "token " << ids[i] << " twice";
  }
  EXPECT_EQ(batch.tokens, counted);
  std::size_t total = 0;
  for (const auto& e : examples) {
    const int size = std::min<int>(max_tokens, static_cast<int>(e.tokens.size()));
    total += size;
    for (int t = 0; t < size; ++t) {
      ASSERT_TRUE(place.contains(e.tokens[t])) << "token lost";
      const auto at = place.at(e.tokens[t]);
      if (t > 0) {
        EXPECT_EQ(at, place.at(e.tokens[t - 1]) + 1);
        EXPECT_EQ(at / batch.length(), (at - 1) / batch.length()) << "an example goes on in the next row";
        EXPECT_EQ(segments[at], segments[at - 1]);
      } else if (at % batch.length() > 0) {
        EXPECT_NE(segments[at], segments[at - 1]) << "two examples in one segment";
      }
      const bool counts = !mask_prompt || t + 1 >= e.prompt;
      EXPECT_EQ(mask[at], counts);
      EXPECT_EQ(next_mask[at], counts && t + 1 < size);
      EXPECT_EQ(targets[at], t + 1 < size ? e.tokens[t + 1] : 0);
    }
  }
  EXPECT_EQ(place.size(), total);
}

TEST(Pack, KeepsEveryTokenInItsPlace) {
  for (unsigned seed = 0; seed < 8; ++seed)
    for (const bool mask_prompt : {false, true}) {
      const auto examples = random_examples(17, 40, seed);
      expect_packed(examples, 64, mask_prompt, pack(examples, 64, mask_prompt));
      expect_packed(examples, 25, mask_prompt, pack(examples, 25, mask_prompt));  // some are cut
    }
}

TEST(Pack, WastesLittle) {
  const auto sized = [](std::vector<int> sizes) {
    std::vector<Example> examples;
    for (const int size : sizes) examples.push_back({std::vector<std::int32_t>(size, 1), 0});
    return pack(examples, 10, false);
  };
  EXPECT_EQ(sized({4, 6, 3, 7, 10}).rows(), 3);  // 10; 7 + 3; 6 + 4
  EXPECT_EQ(sized({2, 3}).length(), 5);          // trimmed to the longest row
  EXPECT_EQ(sized({6, 6}).rows(), 2);
}

TEST(MakeBatches, GroupsInOrderAndKeepTheRest) {
  const auto examples = random_examples(10, 8, 3);
  const auto batches = make_batches(examples, 4, 16, false);
  ASSERT_EQ(batches.size(), 3u);
  for (std::size_t b = 0; b < 3; ++b)
    expect_packed({examples.begin() + 4 * b, examples.begin() + std::min<std::size_t>(10, 4 * b + 4)}, 16, false, batches[b]);
}

TEST(SliceRows, PartsAddUp) {
  const auto batch = pack(random_examples(12, 30, 5), 32, true);
  ASSERT_GT(batch.rows(), 2);
  const auto a = slice_rows(batch, 0, 2), b = slice_rows(batch, 2, batch.rows());
  EXPECT_EQ(a.tokens + b.tokens, batch.tokens);
  const auto expect = [&](auto member) {
    EXPECT_TRUE(mx::array_equal(mx::concatenate({a.*member, b.*member}, 0), batch.*member).template item<bool>());
  };
  expect(&Batch::ids), expect(&Batch::segments), expect(&Batch::mask), expect(&Batch::targets), expect(&Batch::next_mask);
}

TEST(TextRows, EveryTokenIsATargetOnce) {
  std::vector<std::int32_t> ids(101);
  for (int i = 0; i < 101; ++i) ids[i] = i;
  const auto batches = text_rows(ids, 10, 4, 1 << 20);
  ASSERT_EQ(batches.size(), 3u);
  std::vector<std::int32_t> seen, told;
  for (const auto& b : batches) {
    for (const auto v : values<std::int32_t>(b.ids)) seen.push_back(v);
    for (const auto v : values<std::int32_t>(b.targets)) told.push_back(v);
    EXPECT_EQ(b.tokens, b.rows() * 10);
    EXPECT_EQ(mx::sum(b.next_mask).item<float>(), b.tokens);
  }
  EXPECT_EQ(seen, std::vector<std::int32_t>(ids.begin(), ids.end() - 1));
  EXPECT_EQ(told, std::vector<std::int32_t>(ids.begin() + 1, ids.end()));
  EXPECT_EQ(text_rows(ids, 10, 4, 35).at(0).rows(), 3);
  ids.resize(10);
  EXPECT_THROW(text_rows(ids, 10, 4, 100), Error);  // ten tokens have nine successors
}

}  // namespace
}  // namespace lquant::calibration
