#include "model/ops/block_indexer.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "model/ops/attention.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

constexpr int kHidden = 6, kHeads = 2, kDim = 4, kTurning = 2, kQueryHeads = 4;
constexpr double kBase = 100;

std::vector<double> numbers(const mx::array& x) {
  auto host = mx::contiguous(mx::astype(x, mx::float32));
  host.eval();
  return {host.data<float>(), host.data<float>() + host.size()};
}

/// What the definition in block_indexer.h says of one text, in double: of each query head, query and key whether it is read.
class Reference {
 public:
  Reference(const BlockIndexer& indexer, const Tensors& tensors) : indexer_(indexer), tensors_(tensors) {}

  std::vector<bool> read(const std::vector<double>& h, int head) const {
    const int length = static_cast<int>(h.size()) / kHidden;
    const auto queries = heads(h, indexer_.q, indexer_.q_norm, kHeads), keys = heads(h, indexer_.k, indexer_.k_norm, 1);
    std::vector<bool> all(length * length);
    for (int t = 0; t < length; ++t) {
      const auto chosen = blocks(queries, keys, t, head / (kQueryHeads / kHeads));
      for (int s = 0; s <= t; ++s) all[t * length + s] = std::find(chosen.begin(), chosen.end(), s / indexer_.block) != chosen.end();
    }
    return all;
  }

 private:
  /// Of the query at t those that it reads.
  std::vector<int> blocks(const std::vector<double>& queries, const std::vector<double>& keys, int t, int head) const {
    std::vector<double> scores(t / indexer_.block + 1, -INFINITY);
    for (int s = 0; s <= t; ++s) {
      double score = 0;
      for (int d = 0; d < kDim; ++d) score += queries[(t * kHeads + head) * kDim + d] * keys[s * kDim + d];
      auto& best = scores[s / indexer_.block];
      best = s / indexer_.block > t / indexer_.block - indexer_.local ? INFINITY : std::max(best, score);
    }
    std::vector<int> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
    order.resize(std::min<std::size_t>(order.size(), indexer_.top_k));
    return order;
  }

  std::vector<double> heads(const std::vector<double>& h, const LinearSpec& linear, const NormSpec& norm, int count) const {
    const auto matrix = numbers(tensors_.at(linear.path + ".weight")), weight = numbers(tensors_.at(norm.path + ".weight"));
    const int length = static_cast<int>(h.size()) / kHidden;
    std::vector<double> all;
    for (int t = 0; t < length; ++t)
      for (int n = 0; n < count; ++n) {
        std::vector<double> x(kDim, 0);
        double squares = 0;
        for (int d = 0; d < kDim; ++d) {
          for (int i = 0; i < kHidden; ++i) x[d] += matrix[(n * kDim + d) * kHidden + i] * h[t * kHidden + i];
          squares += x[d] * x[d];
        }
        for (int d = 0; d < kDim; ++d) x[d] *= (1 + weight[d]) / std::sqrt(squares / kDim + norm.eps);
        const double angle = t, a = x[0], b = x[1];  // one pair of features turns, by one radian a place
        x[0] = a * std::cos(angle) - b * std::sin(angle), x[1] = b * std::cos(angle) + a * std::sin(angle);
        all.insert(all.end(), x.begin(), x.end());
      }
    return all;
  }

  const BlockIndexer& indexer_;
  const Tensors& tensors_;
};

class BlockIndexerTest : public testing::TestWithParam<int> {
 protected:
  BlockIndexerTest() {
    const auto normal = [](const mx::Shape& shape, float deviation, int seed) {
      return mx::random::normal(shape, mx::float32, 0, deviation, mx::random::key(seed));
    };
    indexer.heads = kHeads, indexer.dim = kDim, indexer.block = 3, indexer.top_k = 2, indexer.local = GetParam();
    indexer.rope = make_rope(kTurning, kBase, false, nullptr, 0);
    indexer.q.path = "q", indexer.q.out = kHeads * kDim, indexer.q.in = kHidden;
    indexer.k.path = "k", indexer.k.out = kDim, indexer.k.in = kHidden;
    indexer.q_norm.path = "q_norm", indexer.k_norm.path = "k_norm";
    for (auto* norm : {&indexer.q_norm, &indexer.k_norm}) norm->size = kDim, norm->offset = 1;
    tensors.emplace("q.weight", normal({kHeads * kDim, kHidden}, 0.5f, 1));
    tensors.emplace("k.weight", normal({kDim, kHidden}, 0.5f, 2));
    tensors.emplace("q_norm.weight", normal({kDim}, 0.3f, 3));
    tensors.emplace("k_norm.weight", normal({kDim}, 0.3f, 4));
  }

  std::optional<mx::array> chosen(const mx::array& h, const Context& context) const {
    return indexer.chosen_keys(Scope{tensors, formats, context, mx::float32, 0}, h, kQueryHeads, attention_args(context, 1));
  }

  /// Whether of the text in places first … of a row what the mask says is what the definition does, and other texts are out of sight.
  void expect_text(const mx::array& mask, const mx::array& h, int row, int first, int length) const {
    const auto values = numbers(mask), text = numbers(mx::slice(h, {row, first, 0}, {row + 1, first + length, kHidden}));
    const Reference reference(indexer, tensors);
    const int all = h.shape(1);
    for (int head = 0; head < kQueryHeads; ++head) {
      const auto wanted = reference.read(text, head);
      for (int t = 0; t < length; ++t)
        for (int s = 0; s < all; ++s) {
          const bool own = s >= first && s < first + length;
          EXPECT_EQ(values[((row * kQueryHeads + head) * all + first + t) * all + s] != 0, own && wanted[t * length + s - first])
              << "head " << head << ", query " << t << ", key " << s;
        }
    }
  }

  BlockIndexer indexer;
  Tensors tensors;
  Formats formats;
};

TEST_P(BlockIndexerTest, AQueryReadsTheBestBlocks) {
  const auto h = mx::random::normal({2, 11, kHidden}, mx::float32, 0, 1, mx::random::key(5));
  const auto mask = chosen(h, {});
  ASSERT_TRUE(mask);
  for (int row = 0; row < 2; ++row) expect_text(*mask, h, row, 0, 11);
}

TEST_P(BlockIndexerTest, BlocksAreCountedFromATextsFirstToken) {
  const auto h = mx::random::normal({1, 24, kHidden}, mx::float32, 0, 1, mx::random::key(6));
  std::vector<std::int32_t> numbers(24, 2);
  std::fill_n(numbers.begin(), 10, 0);
  std::fill_n(numbers.begin() + 10, 4, 1);  // fewer blocks than it may read
  Context context;
  context.segments = mx::array(numbers.data(), {1, 24}, mx::int32);
  const auto mask = chosen(h, context);
  ASSERT_TRUE(mask);
  expect_text(*mask, h, 0, 0, 10);
  expect_text(*mask, h, 0, 10, 4);
  expect_text(*mask, h, 0, 14, 10);
}

TEST_P(BlockIndexerTest, ACacheHasTheKeysOfAllTokens) {
  const auto h = mx::random::normal({1, 11, kHidden}, mx::float32, 0, 1, mx::random::key(7));
  const auto whole = chosen(h, {});
  Cache cache(1);
  Context context;
  context.cache = &cache;
  for (const auto& [first, last] : std::vector<std::pair<int, int>>{{0, 4}, {4, 7}, {7, 10}, {10, 11}}) {
    const auto mask = chosen(mx::slice(h, {0, first, 0}, {1, last, kHidden}), context);
    cache.advance(last - first);
    EXPECT_EQ(mask.has_value(), last > 6) << last;  // two blocks are few enough
    if (mask) EXPECT_TRUE(mx::array_equal(*mask, mx::slice(*whole, {0, 0, first, 0}, {1, kQueryHeads, last, last})).item<bool>()) << last;
  }
}

INSTANTIATE_TEST_SUITE_P(Local, BlockIndexerTest, testing::Values(0, 1, 2));

}  // namespace
}  // namespace lquant::model
