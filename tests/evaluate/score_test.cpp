#include "evaluate/score.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>

#include "base/error.h"
#include "evaluate/statistics.h"
#include "model/forward.h"
#include "model/op.h"
#include "oracle/model_random.h"

namespace lquant::evaluate {
namespace {

const std::string kTiny = std::string(LQUANT_SOURCE_DIR) + "/models/tiny";

LoadedModel tiny() { return LoadedModel::load(model::Model::open(checkpoint::Checkpoint::open(kTiny)), mx::float32); }

model::Head head_of(const LoadedModel& m) { return model::head(m.spec, m.tensors, m.formats, m.dtype); }

std::vector<std::int32_t> random_ids(int count, int vocab, int seed) {
  auto ids = mx::random::randint(1, vocab, {count}, mx::int32, mx::random::key(seed));
  ids.eval();
  return {ids.data<std::int32_t>(), ids.data<std::int32_t>() + count};
}

/// Questions of unlike shapes: endings of one token and of many, endings that begin alike, one that another one continues, contexts that differ
/// (as winogrande's), a choice that fits nowhere, a single choice.
std::vector<Encoded> questions(int vocab) {
  const auto question = [&](int context, std::vector<int> endings, int seed) {
    Encoded q;
    const auto begin = random_ids(context, vocab, seed);
    for (const int length : endings) {
      auto tokens = begin;
      const auto ending = random_ids(length, vocab, seed + length % 7);
      tokens.insert(tokens.end(), ending.begin(), ending.end());
      q.sequences.push_back({tokens, begin.size()});
    }
    return q;
  };
  std::vector<Encoded> all{question(40, {1, 1}, 1), question(9, {5, 12, 3, 20}, 20), question(1, {4, 11}, 40), question(70, {2, 9, 9}, 60),
                           question(5, {6}, 80)};
  Encoded apart;
  for (int i = 0; i < 2; ++i) apart.sequences.push_back({random_ids(15, vocab, 90 + i), 8});
  all.push_back(apart);
  all.push_back({{{}, all[1].sequences[0]}, true});
  return all;
}

/// Each choice alone, from all logits of its whole sequence, in double.
double naive(const LoadedModel& m, const Sequence& s) {
  const int length = static_cast<int>(s.tokens.size());
  auto logits = mx::contiguous(
      mx::astype(model::forward(m.spec, m.tensors, m.formats, mx::array(s.tokens.data(), {1, length}, mx::int32), m.dtype), mx::float32));
  logits.eval();
  double sum = 0;
  for (int t = static_cast<int>(s.scored); t < length; ++t) {
    const float* z = logits.data<float>() + static_cast<std::ptrdiff_t>(t - 1) * m.spec.vocab;
    const double top = *std::max_element(z, z + m.spec.vocab);
    double total = 0;
    for (int v = 0; v < m.spec.vocab; ++v) total += std::exp(z[v] - top);
    sum += z[s.tokens[t]] - top - std::log(total);
  }
  return sum;
}

// Both sides take the same f32 sums in another order. A logit is a sum of H products whose errors are at most H·2⁻²⁴·Σ|h·w|, in practice √H times
// less (see quality_test.cpp: 5e-4 for H = 256 at logits below 30); a log-probability has twice that and an ending the sum of its tokens'.
constexpr double kTokenError = 1e-3;

void expect_naive(const LoadedModel& m, const std::vector<Encoded>& all) {
  const auto got = score(m, head_of(m), all);
  ASSERT_EQ(got.size(), all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(got[i].size(), all[i].sequences.size());
    for (std::size_t c = 0; c < got[i].size(); ++c) {
      const auto& s = all[i].sequences[c];
      if (s.tokens.empty()) {
        EXPECT_TRUE(std::isinf(got[i][c]) && got[i][c] < 0);
        continue;
      }
      EXPECT_NEAR(got[i][c], naive(m, s), kTokenError * static_cast<double>(s.tokens.size() - s.scored)) << i << ", choice " << c;
    }
  }
}

TEST(Score, SharedBeginningsEqualWholeSequences) {
  const auto m = tiny();
  expect_naive(m, questions(m.spec.vocab));
}

// Layers with a sliding window, shorter than some questions: those are run choice by choice.
TEST(Score, WindowsAreKept) {
  const auto config = oracle::tiny_config("gemma3_text");
  LoadedModel m{model::spec_from_config(config), {}, {}, mx::float32};
  m.tensors = oracle::random_tensors(m.spec, 3);
  expect_naive(m, questions(m.spec.vocab));
}

/// An op that cannot go on from a text computed once, as a recurrence that keeps no state a token.
struct WholeTextsAlone final : model::Op {
  std::shared_ptr<const model::Op> op;

  void contents(int number, int first_stage, model::Contents& all) const override { op->contents(number, first_stage, all); }
  int stages() const override { return op->stages(); }
  model::Flow start(const model::Scope& scope, const mx::array& normed, const mx::array& raw) const override {
    EXPECT_FALSE(scope.context.branches);
    return op->start(scope, normed, raw);
  }
  model::Flow advance(const model::Scope& scope, int stage, const model::Flow& at) const override { return op->advance(scope, stage, at); }
  mx::array finish(const model::Scope& scope, const model::Flow& at, const std::optional<mx::array>& residual) const override {
    return op->finish(scope, at, residual);
  }
  std::vector<std::string> readers() const override { return op->readers(); }
  std::vector<model::Edge> edges() const override { return op->edges(); }
  model::Traits traits() const override {
    auto traits = op->traits();
    traits.branches = false;
    return traits;
  }
};

TEST(Score, OpsThatKnowNoBranchesGetWholeSequences) {
  auto m = tiny();
  auto alone = std::make_shared<WholeTextsAlone>();
  auto& op = m.spec.blocks.back().steps.front().branches.front().op;
  alone->op = op;
  op = alone;
  expect_naive(m, questions(m.spec.vocab));
}

// Taps reach from an ending into the text that it continues.
TEST(Score, ConvolutionsShareBeginnings) {
  LoadedModel m{model::spec_from_config(oracle::tiny_config("lfm2")), {}, {}, mx::float32};
  m.tensors = oracle::random_tensors(m.spec, 3);
  expect_naive(m, questions(m.spec.vocab));
}

TEST(Score, BatchesHoldWhatTheyMay) {
  const auto all = questions(100);
  EXPECT_EQ(cost(all[0]), 40u);         // two endings of one token cost nothing more
  EXPECT_EQ(cost(all[4]), 5u + 6 - 1);  // the last token is no input
  EXPECT_EQ(cost(all[5]), 14u + 14);    // nothing in common
  const auto one = batches(all, 1);
  EXPECT_EQ(one.size(), all.size());
  std::size_t total = 0;
  for (const auto& q : all) total += cost(q);
  EXPECT_EQ(batches(all, total).size(), 1u);
  const auto two = batches(all, total - 1);
  ASSERT_EQ(two.size(), 2u);
  EXPECT_EQ(two[0].second, two[1].first);
  EXPECT_EQ(two[1].second, all.size());
  EXPECT_TRUE(batches({}, 10).empty());
}

// Of one token that cannot be computed every score in reach is NaN, never a number: a softmax that passed over it would hide it.
TEST(Score, NoNumbersStayNoNumbers) {
  auto m = tiny();
  auto& norm = m.tensors.at(m.spec.final_norm.path + ".weight");
  norm = mx::full(norm.shape(), std::nanf(""), norm.dtype());
  for (const auto& likelihoods : score(m, head_of(m), questions(100)))
    for (const double value : likelihoods) EXPECT_TRUE(std::isnan(value) || std::isinf(value));  // −∞: a choice that was not asked
  auto one = tiny();
  auto& embedding = one.tensors.at(one.spec.embedding.path + ".weight");  // the head too
  const auto row = mx::reshape(mx::equal(mx::arange(embedding.shape(0)), mx::array(7)), {-1, 1});
  embedding = mx::where(row, mx::array(std::nanf("")), embedding);
  for (const auto& likelihoods : score(one, head_of(one), questions(100)))
    for (const double value : likelihoods) EXPECT_TRUE(std::isnan(value) || std::isinf(value));
}

// --- tokens ---

std::vector<Encoded> encoded(const std::vector<Prompt>& prompts, int max_tokens) {
  return encode(text::Tokenizer::open(kTiny), prompts, std::vector<std::string>(prompts.size(), "file:1"), {max_tokens, false, 0});
}

TEST(Encode, WhiteSpaceGoesToTheContinuation) {
  const auto tokenizer = text::Tokenizer::open(kTiny);
  const auto got = encoded({{{"The river \n"}, {"runs", "stands still"}}}, 100)[0];
  const auto context = tokenizer.encode("The river");
  for (std::size_t c = 0; c < 2; ++c) {
    const auto& s = got.sequences[c];
    EXPECT_EQ(s.scored, context.size());
    auto wanted = context;
    const auto whole = tokenizer.encode(c == 0 ? "The river \nruns" : "The river \nstands still");
    wanted.insert(wanted.end(), whole.begin() + static_cast<std::ptrdiff_t>(context.size()), whole.end());
    EXPECT_EQ(s.tokens, wanted);
  }
  EXPECT_FALSE(got.cut);
}

TEST(Encode, AnEmptyContextIsTheTokenThatBeginsTexts) {
  const auto got = encoded({{{""}, {"river", "<|endoftext|>river"}}}, 100)[0];
  EXPECT_EQ(got.sequences[0].tokens.front(), 0);
  EXPECT_EQ(got.sequences[0].tokens, got.sequences[1].tokens);
  EXPECT_EQ(got.sequences[0].scored, 1u);
}

// All choices of a context lose what its longest one needs; what loses all of its context is scored as impossible.
TEST(Encode, LongContextsLoseTheirBeginning) {
  const Prompt prompt{{"one two three four five six seven eight nine ten"}, {" a", " the long winter and the light"}};
  const auto whole = encoded({prompt}, 100)[0];
  const auto size = whole.sequences[1].tokens.size();
  const auto cut = encoded({prompt}, static_cast<int>(size) - 4)[0];
  EXPECT_TRUE(cut.cut);
  for (std::size_t c = 0; c < 2; ++c) {
    const auto& before = whole.sequences[c];
    EXPECT_EQ(cut.sequences[c].tokens, (std::vector<std::int32_t>(before.tokens.begin() + 3, before.tokens.end())));
    EXPECT_EQ(cut.sequences[c].scored, before.scored - 3);
  }
  const auto gone = encoded({prompt}, 2)[0];
  EXPECT_TRUE(gone.cut && gone.sequences[0].tokens.empty() && gone.sequences[1].tokens.empty());
}

TEST(Encode, NothingToScoreIsRefused) { EXPECT_THROW(encoded({{{"The river"}, {" runs", ""}}}, 100), Error); }

// --- statistics ---

TEST(Statistics, MeansHaveTheSamplesError) {
  const auto m = mean_of({1, 0, 0, 1, 1});
  EXPECT_DOUBLE_EQ(m.value, 0.6);
  EXPECT_NEAR(m.error, std::sqrt(5 * 0.24 / 4) / std::sqrt(5), 1e-15);
  EXPECT_TRUE(std::isnan(mean_of({1}).error));
}

TEST(Statistics, TheFirstOfEqualsIsLikeliest) {
  EXPECT_EQ(likeliest({-2, -1, -1}), 1u);
  EXPECT_EQ(likeliest({-2, -3}, std::vector<std::size_t>{1, 4}), 1u);
  const double none = -std::numeric_limits<double>::infinity();
  EXPECT_EQ(likeliest({none, none}), 0u);
}

// 9 gains and 2 losses of 100: p by hand, 2·(1 + 11 + 55)/2¹¹; the interval by Bonett and Price's formula with 10/102 and 3/102.
TEST(Statistics, PairsAreCompared) {
  std::vector<double> model(100, 1), other(100, 1);
  for (int i = 0; i < 9; ++i) other[i] = 0;
  for (int i = 9; i < 11; ++i) model[i] = 0;
  const auto p = compare(model, other);
  EXPECT_EQ(p.gained, 9);
  EXPECT_EQ(p.lost, 2);
  EXPECT_DOUBLE_EQ(p.difference, 0.07);
  EXPECT_NEAR(p.p, 2 * 67 / 2048.0, 1e-12);
  const double middle = 7 / 102.0, half = 1.959963984540054 * std::sqrt((13 / 102.0 - middle * middle) / 102);
  EXPECT_NEAR(p.low, middle - half, 1e-12);
  EXPECT_NEAR(p.high, middle + half, 1e-12);
  const auto same = compare(model, model);
  EXPECT_EQ(same.p, 1);
  EXPECT_TRUE(same.low < 0 && same.high > 0);
  EXPECT_THROW(compare(model, {}), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::evaluate
