#include "pipeline/expert_rows.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "base/files.h"
#include "base/temp.h"
#include "model/ops/experts.h"
#include "oracle/model_random.h"
#include "pipeline/expect.h"
#include "pipeline/rows.h"

namespace lquant::pipeline {
namespace {

namespace mx = mlx::core;

nlohmann::json config_of_many_experts() {
  auto config = oracle::tiny_config("qwen3_moe");
  config["num_experts"] = 12;
  return config;
}

class ExpertRowsTest : public ::testing::Test {
 protected:
  nlohmann::json config = config_of_many_experts();
  model::ModelSpec spec = model::spec_from_config(config);
  model::Tensors tensors = oracle::random_tensors(spec, 3);
  oracle::Folder folder{config, tensors};
  model::Model model = model::Model::open(checkpoint::Checkpoint::open(folder.path()));
  lquant::testing::TempFolder temp;
  run::NoEvents told;
  run::Stop stop;
  run::Context context{told, stop};

  /// Texts of unequal length; of the later ones each is about a few tokens of its own.
  std::vector<calibration::Example> texts(int count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<calibration::Example> examples(count);
    for (int i = 0; i < count; ++i) {
      const int topic = 6 + static_cast<int>(random() % 42);
      for (int t = 0, length = 3 + static_cast<int>(random() % 12); t < length; ++t)
        examples[i].tokens.push_back(i < count / 4 ? static_cast<int>(random() % 6) : (topic + static_cast<int>(random() % 2)) % 48);
    }
    return examples;
  }

  /// Of one text alone, by the largest logits of the routers.
  std::vector<std::int32_t> counted_alone(const calibration::Example& example) {
    std::vector<std::int32_t> counts;
    const model::Observer observer = [&](const std::string& path, const mx::array& input, const model::ExpertRows*) {
      for (const auto& block : spec.blocks)
        if (const auto* op = model::find_op<model::Experts>(block); op && op->router.linear.path == path) {
          const auto weight = model::dense_weight(tensors, {}, path, mx::float32);
          auto ranked = mx::argsort(mx::negative(mx::matmul(mx::reshape(input, {-1, input.shape(-1)}), mx::transpose(weight))), -1);
          ranked = mx::contiguous(mx::slice(ranked, {0, 0}, {ranked.shape(0), op->router.top_k}));
          ranked.eval();
          const auto first = counts.size();
          counts.resize(first + op->router.experts);
          for (std::size_t i = 0; i < ranked.size(); ++i) ++counts[first + ranked.data<std::uint32_t>()[i]];
        }
    };
    model::Context told_to;
    told_to.observer = &observer;
    const mx::array ids(example.tokens.begin(), {1, static_cast<int>(example.tokens.size())}, mx::int32);
    model::hidden_states(spec, tensors, {}, ids, mx::float32, told_to).eval();
    return counts;
  }
};

TEST_F(ExpertRowsTest, CountsAreTheRoutersChoicesWhateverSharesABatch) {
  ASSERT_TRUE(has_routed_experts(spec));
  EXPECT_FALSE(has_routed_experts(model::spec_from_config(oracle::tiny_config("llama"))));
  const auto examples = texts(19, 1);
  calibration::Candidates candidates;
  count_expert_tokens(model, {examples.begin(), examples.begin() + 7}, candidates, context);
  count_expert_tokens(model, {examples.begin() + 7, examples.end()}, candidates, context);
  ASSERT_EQ(candidates.reached.size(), examples.size());
  for (std::size_t i = 0; i < examples.size(); ++i) {
    EXPECT_EQ(candidates.lengths[i], static_cast<int>(examples[i].tokens.size()));
    EXPECT_EQ(candidates.reached[i], counted_alone(examples[i])) << i;
  }
}

TEST_F(ExpertRowsTest, FewerExpertsLackTokensAndARunThatGoesOnTakesTheSameRows) {
  const auto examples = texts(40, 2);
  constexpr int kFloor = 12;
  const auto below = [&](const std::vector<calibration::Example>& rows) {
    std::vector<int> tokens;
    for (const auto& row : rows) {
      const auto counts = counted_alone(row);
      tokens.resize(counts.size());
      for (std::size_t e = 0; e < counts.size(); ++e) tokens[e] += counts[e];
    }
    return std::count_if(tokens.begin(), tokens.end(), [](int n) { return n < kFloor; });
  };
  const calibration::Drawn fresh{{examples.begin(), examples.begin() + 10}, {examples.begin() + 10, examples.end()}, {}};
  auto drawn = fresh;
  run::RunFolder run(temp / "out", {{"test", 1}}, false, context);
  const auto figures = reach_experts(model, drawn, kFloor, run, context);
  EXPECT_EQ(figures.at("before"), below(fresh.examples));
  EXPECT_EQ(figures.at("after"), below(drawn.examples));
  EXPECT_LT(figures.at("after"), figures.at("before"));
  EXPECT_GT(figures.at("exchanged"), 0);
  ASSERT_EQ(drawn.examples.size(), fresh.examples.size());

  // A quarter of what each expert would see if all saw as many.
  double all = 0, experts = 0;
  for (const auto& row : fresh.examples) {
    const auto counts = counted_alone(row);
    experts = static_cast<double>(counts.size());
    all += std::accumulate(counts.begin(), counts.end(), 0.0);
  }
  auto by_default = fresh;
  run::RunFolder other(temp / "other", {{"test", 2}}, false, context);
  EXPECT_EQ(reach_experts(model, by_default, std::nullopt, other, context).at("floor"), static_cast<int>(all / experts / 4));

  auto again = fresh;
  stop.request();  // counting would be interrupted
  EXPECT_EQ(reach_experts(model, again, kFloor, run, context), figures);
  for (std::size_t i = 0; i < again.examples.size(); ++i) EXPECT_EQ(again.examples[i].tokens, drawn.examples[i].tokens);
}

TEST_F(ExpertRowsTest, WhatOneStepChoseTheNextTakesWithoutCounting) {
  std::string lines;
  for (const auto& example : texts(40, 2)) lines += nlohmann::json{{"tokens", example.tokens}}.dump() + "\n";
  write_file_atomically("test", temp / "rows.jsonl", lines);
  const auto tokenizer = text::Tokenizer::open(std::filesystem::path(LQUANT_SOURCE_DIR) / "models" / "tiny");
  RowOptions options{{(temp / "rows.jsonl").string()}, 10, 16, 7, 12};
  RowSource first(options, tokenizer, spec);
  run::RunFolder run(temp / "first", {{"test", 1}}, false, context);
  options.chosen = first.choose(model, run, context);
  ASSERT_TRUE(options.chosen);
  const auto drawn = first.draw(model, run, context);
  EXPECT_GT(drawn.manifest.at("experts_below").at("exchanged"), 0);

  stop.request();  // counting would be interrupted
  RowSource next(options, tokenizer, spec);
  run::RunFolder other(temp / "next", {{"test", 2}}, false, context);
  const auto& same = next.draw(model, other, context);
  EXPECT_EQ(same.manifest, drawn.manifest);
  ASSERT_EQ(same.examples.size(), drawn.examples.size());
  for (std::size_t i = 0; i < same.examples.size(); ++i) EXPECT_EQ(same.examples[i].tokens, drawn.examples[i].tokens);

  options.expert_tokens = 0;
  EXPECT_FALSE(RowSource(options, tokenizer, spec).choose(model, other, context));
}

TEST_F(ExpertRowsTest, WhatAutoExpectsOfItsFirstStepHasTheCountingInIt) {
  // By the time of another step, so that the machine's rate, measured each time, cancels out.
  const auto first_by_gptq = [&](int rows, std::optional<int> tokens) {
    AutoRun options;
    options.steps = {"gptq"};
    options.num_samples = rows;
    options.expert_tokens = tokens;
    const auto steps = expect(options, model);
    return steps.at(0).expected_time / steps.at(1).expected_time;
  };
  EXPECT_GT(first_by_gptq(1024, std::nullopt), 1.001 * first_by_gptq(1024, 0));
  EXPECT_NEAR(first_by_gptq(kStatisticRows, std::nullopt), first_by_gptq(kStatisticRows, 0), 1e-9);  // there are no further rows
}

}  // namespace
}  // namespace lquant::pipeline
