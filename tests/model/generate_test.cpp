#include "model/generate.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <random>

#include "base/error.h"
#include "oracle/model_random.h"
#include "oracle/model_sampling.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

std::vector<float> random_logits(int count) {
  std::mt19937 random(4);
  std::vector<float> logits(count);
  for (auto& value : logits) value = static_cast<float>(random() % 100000) * 1e-4f - 5;
  return logits;
}

TEST(SampleToken, DrawsFromTheDistributionThatItsFiltersDefine) {
  const auto logits = random_logits(60);
  struct Case {
    float temperature, top_p, min_p;
    int top_k;
  };
  for (const auto& [temperature, top_p, min_p, top_k] : {Case{1, 0, 0, 0}, Case{0.5f, 1, 0, 0}, Case{1.7f, 0.9f, 0, 0}, Case{1, 0, 0.1f, 0},
                                                         Case{0.8f, 0, 0, 5}, Case{1, 0.8f, 0.05f, 4}, Case{1, 0.999f, 0.2f, 50}}) {
    SampleOptions options;
    options.temperature = temperature;
    options.top_p = top_p;
    options.min_p = min_p;
    options.top_k = top_k;
    const auto expected = oracle::sampling_distribution(logits, options);
    // A token owns one interval of [0, 1): of n evenly spaced points it holds n·p, give or take one.
    const int n = 20000;
    std::vector<int> count(logits.size());
    for (int i = 0; i < n; ++i) ++count[sample_token(logits.data(), static_cast<int>(logits.size()), options, (i + 0.5) / n)];
    for (std::size_t t = 0; t < logits.size(); ++t)
      EXPECT_NEAR(count[t], n * expected[t], 1.01) << "token " << t << ", top_p " << top_p << ", top_k " << top_k;
  }
}

TEST(SampleToken, ZeroTemperatureTakesTheLargest) {
  const std::vector<float> logits = {0.5f, 3, 2.9f};
  EXPECT_EQ(sample_token(logits.data(), 3, {}, 0.999), 1);
}

class SampleTest : public testing::Test {
 protected:
  std::vector<std::vector<int>> run(const std::vector<std::vector<int>>& prompts, const SampleOptions& options,
                                    const TokenCallback& callback = nullptr) {
    return sample(spec, tensors, {}, mx::float32, prompts, options, callback);
  }
  ModelSpec spec = spec_from_config(oracle::tiny_config("gemma3_text"));
  Tensors tensors = oracle::random_tensors(spec, 31);
};

TEST_F(SampleTest, GreedyFollowsTheWholeForwardPass) {
  SampleOptions options;
  options.max_tokens = 6;
  options.prefill_step = 2;  // prompts longer than a step are read in pieces
  std::vector<int> text = {3, 1, 4, 1, 5};
  const auto made = run({text}, options).at(0);
  ASSERT_EQ(made.size(), 6u);
  for (const int token : made) {
    const auto scores = forward(spec, tensors, {}, mx::array(text.data(), {1, static_cast<int>(text.size())}, mx::int32), mx::float32);
    const auto last = mx::slice(scores, {0, static_cast<int>(text.size()) - 1, 0}, {1, static_cast<int>(text.size()), spec.vocab});
    EXPECT_EQ(token, static_cast<int>(mx::argmax(last).item<std::uint32_t>()));
    text.push_back(token);
  }
}

TEST_F(SampleTest, RowsDoNotDependOnEachOther) {
  SampleOptions options;
  options.max_tokens = 12;
  options.temperature = 1;
  options.seed = 5;
  const std::vector<std::vector<int>> prompts = {{1}, {2, 3, 4, 5, 6}, {7, 8}, {9, 9, 9}};
  const auto together = run(prompts, options);
  EXPECT_EQ(together, run(prompts, options));
  EXPECT_EQ(together.at(0), run({prompts[0]}, options).at(0));
  // Row 1 keeps its draws when its neighbours end early and the batch is thinned around it.
  const auto alone = run(prompts, options, [](int row, int) { return row == 1; });
  EXPECT_EQ(alone.at(1), together.at(1));
  for (const int row : {0, 2, 3}) EXPECT_EQ(alone.at(row), std::vector<int>{together.at(row).front()});
  options.seed = 6;
  EXPECT_NE(together, run(prompts, options));
}

// What a convolution keeps of a row goes with the row when the batch is thinned.
TEST_F(SampleTest, RowsOfConvolutionsDoNotDependOnEachOther) {
  spec = spec_from_config(oracle::tiny_config("lfm2"));
  tensors = oracle::random_tensors(spec, 31);
  SampleOptions options;
  options.max_tokens = 8;
  const std::vector<std::vector<int>> prompts = {{1}, {2, 3, 4, 5, 6}, {7, 8}, {9, 9, 9}};
  const auto together = run(prompts, options);
  const auto alone = run(prompts, options, [](int row, int) { return row == 2; });
  EXPECT_EQ(alone.at(2), together.at(2));
  for (std::size_t row = 0; row < prompts.size(); ++row) EXPECT_EQ(together.at(row), run({prompts[row]}, options).at(0));
}

TEST_F(SampleTest, StopTokensEndTheirRowAndAreKept) {
  SampleOptions options;
  options.max_tokens = 8;
  const auto free = run({{1}, {2}}, options);
  options.stop = {free.at(0).at(2)};
  const auto stopped = run({{1}, {2}}, options);
  const auto& row = stopped.at(0);
  EXPECT_EQ(row.back(), options.stop[0]);
  EXPECT_LE(row.size(), 3u);
  EXPECT_TRUE(std::equal(row.begin(), row.end(), free.at(0).begin()));
}

TEST_F(SampleTest, ImpossiblePromptsAreRefused) {
  EXPECT_THROW(run({{1}, {}}, {}), Error);
  EXPECT_THROW(run({{48}}, {}), Error);
  EXPECT_THROW(run({{-1}}, {}), Error);
  SampleOptions options;
  options.top_p = 2;
  EXPECT_THROW(run({{1}}, options), Error);
  EXPECT_TRUE(run({}, {}).empty());
}

}  // namespace
}  // namespace lquant::model
