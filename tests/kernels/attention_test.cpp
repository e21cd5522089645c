#include "kernels/attention.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <limits>
#include <string>
#include <vector>

#include "kernels/attention_paths.h"
#include "kernels/elementwise_testing.h"
#include "kernels/primitive.h"
#include "oracle/kernels_attention.h"

namespace lquant::kernels {
namespace {

using oracle::AttentionReference;
using oracle::AttentionRule;
using oracle::AttentionSize;
using testing::doubles;
using testing::normal;

struct Case {
  const char* name;
  AttentionSize size;
  AttentionRule rule;
};

/// `count` texts in turn, each of them met again later: numbers that go up and down, and runs of unequal length.
std::vector<std::int32_t> mixed_segments(std::int64_t batch, std::int64_t keys, int count) {
  std::vector<std::int32_t> result;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t s = 0; s < keys; ++s) result.push_back(static_cast<std::int32_t>((s * s / 97 + b) * 7 % count) - 1);
  }
  return result;
}

/// Texts packed end to end, `length` tokens each.
std::vector<std::int32_t> packed_segments(std::int64_t batch, std::int64_t keys, std::int64_t length) {
  std::vector<std::int32_t> result;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t s = 0; s < keys; ++s) result.push_back(static_cast<std::int32_t>(s / length));
  }
  return result;
}

/// Logits around those of the keys, which bf16 and f16 hold.
std::vector<double> sinks(std::int64_t heads) {
  std::vector<double> result;
  for (std::int64_t h = 0; h < heads; ++h) result.push_back(static_cast<double>(h * 5 % 7) * 0.75 - 2);
  return result;
}

// Sizes: batch, queries, keys, heads, key heads, features, value features. Blocks of the CPU kernels hold up to 128 queries, and 512
// (forward) or 256 keys (backward) in units of 64; up to 16 rows (queries times heads of a group) take another way.
std::vector<Case> cases() {
  return {
      {"one token", {1, 1, 1, 1, 1, 64, 64}, {0.125}},
      {"seven tokens", {2, 7, 7, 4, 2, 64, 64}, {0.125}},
      {"seven tokens of one head", {1, 7, 7, 1, 1, 32, 32}, {0.2}},
      {"65 tokens, grouped by three", {1, 65, 65, 9, 3, 64, 64}, {0.125}},
      {"300 tokens, grouped by three", {1, 300, 300, 3, 1, 64, 64}, {0.125}},
      {"more keys than a block", {1, 600, 600, 2, 2, 32, 32}, {0.2}},
      {"no mask", {1, 65, 130, 2, 1, 64, 64}, {.scale = 0.125, .causal = false}},
      {"no mask, long", {1, 20, 1100, 2, 2, 32, 32}, {.scale = 0.2, .causal = false}},
      {"past window without causality", {1, 70, 90, 2, 1, 32, 32}, {.scale = 0.2, .window = 9, .offset = 20, .causal = false}},
      {"window of one", {1, 65, 65, 2, 1, 32, 32}, {.scale = 0.2, .window = 1}},
      {"window", {1, 300, 300, 2, 1, 64, 64}, {.scale = 0.125, .window = 100}},
      {"window beyond the text", {1, 65, 65, 2, 2, 32, 32}, {.scale = 0.2, .window = 1000}},
      {"softcap", {1, 130, 130, 2, 1, 64, 64}, {.scale = 0.5, .softcap = 5}},
      {"softcap, window and segments",
       {2, 130, 130, 4, 2, 32, 32},
       {.scale = 0.5, .softcap = 3, .window = 50, .segments = mixed_segments(2, 130, 3)}},
      {"packed texts", {2, 300, 300, 2, 1, 32, 32}, {.scale = 0.2, .segments = packed_segments(2, 300, 40)}},
      {"mixed texts", {2, 300, 300, 2, 1, 32, 32}, {.scale = 0.2, .segments = mixed_segments(2, 300, 5)}},
      {"mixed texts without causality", {1, 200, 200, 2, 1, 32, 32}, {.scale = 0.2, .causal = false, .segments = mixed_segments(1, 200, 4)}},
      {"few mixed texts", {2, 9, 9, 1, 1, 32, 32}, {.scale = 0.2, .segments = mixed_segments(2, 9, 2)}},
      {"one query after 700", {2, 1, 701, 9, 3, 64, 64}, {.scale = 0.125, .offset = 700}},
      {"one query among more keys", {1, 1, 1300, 4, 4, 80, 80}, {.scale = 0.1, .offset = 1100}},
      {"one query, window, softcap", {1, 1, 1200, 8, 1, 64, 48}, {.scale = 0.5, .softcap = 4, .window = 700, .offset = 1190}},
      {"five queries after 600", {1, 5, 605, 3, 1, 64, 64}, {.scale = 0.125, .offset = 600}},
      {"40 queries after 90", {1, 40, 140, 4, 2, 64, 64}, {.scale = 0.125, .offset = 90}},
      {"80 features", {1, 140, 140, 2, 1, 80, 80}, {0.11}},
      {"96 features", {1, 65, 65, 4, 1, 96, 96}, {0.1}},
      {"128 features", {1, 140, 140, 5, 1, 128, 128}, {0.09}},
      {"256 features", {1, 65, 65, 2, 1, 256, 256}, {0.0625}},
      {"odd features", {1, 70, 70, 2, 1, 20, 20}, {0.2}},
      {"odd features, few", {1, 3, 67, 2, 1, 21, 13}, {.scale = 0.2, .offset = 64}},
      {"narrow values", {1, 140, 140, 2, 1, 96, 64}, {0.1}},
      {"wide values", {1, 65, 65, 4, 4, 32, 80}, {0.2}},
      {"32 heads of one", {1, 70, 70, 32, 1, 32, 32}, {0.2}},
      {"sinks", {2, 140, 140, 6, 2, 64, 48}, {.scale = 0.125, .sinks = sinks(6)}},
      {"sinks, more keys than a block", {1, 530, 530, 2, 2, 16, 16}, {.scale = 0.25, .sinks = sinks(2)}},
      {"sinks, softcap, window and segments",
       {2, 130, 130, 4, 2, 32, 32},
       {.scale = 0.5, .softcap = 3, .window = 50, .segments = mixed_segments(2, 130, 3), .sinks = sinks(4)}},
      {"sinks of one query after 700", {2, 1, 701, 9, 3, 64, 64}, {.scale = 0.125, .offset = 700, .sinks = sinks(9)}},
      {"sinks of few tokens", {2, 7, 7, 4, 2, 64, 64}, {.scale = 0.125, .sinks = sinks(4)}},
      {"chunks", {1, 300, 300, 2, 1, 32, 32}, {.scale = 0.2, .chunk = 100}},
      {"chunks of more than a block", {1, 600, 600, 1, 1, 16, 16}, {.scale = 0.25, .chunk = 530}},
      {"chunks of one", {1, 65, 65, 2, 1, 32, 32}, {.scale = 0.2, .chunk = 1}},
      {"chunks beyond the text", {1, 65, 65, 2, 2, 32, 32}, {.scale = 0.2, .chunk = 1000}},
      {"chunks without causality", {1, 65, 130, 2, 1, 32, 32}, {.scale = 0.2, .causal = false, .chunk = 40}},
      {"chunks, window and sinks", {2, 150, 150, 2, 1, 32, 32}, {.scale = 0.2, .window = 30, .chunk = 70, .sinks = sinks(2)}},
      {"chunks of packed texts", {2, 200, 200, 2, 1, 32, 32}, {.scale = 0.2, .segments = packed_segments(2, 200, 90), .chunk = 50}},
      {"chunks of runs", {2, 130, 130, 2, 1, 32, 32}, {.scale = 0.2, .softcap = 3, .segments = mixed_segments(2, 130, 3), .chunk = 5}},
      {"chunks of texts without causality",
       {1, 200, 200, 2, 1, 32, 32},
       {.scale = 0.2, .causal = false, .segments = packed_segments(1, 200, 70), .chunk = 32}},
      {"one query after 700, chunks", {1, 1, 701, 4, 2, 64, 64}, {.scale = 0.125, .offset = 700, .chunk = 256}},
      {"first query of a chunk", {1, 1, 801, 4, 2, 64, 64}, {.scale = 0.125, .offset = 768, .chunk = 256, .sinks = sinks(4)}},
      {"40 queries after 90, chunks", {1, 40, 140, 4, 2, 64, 64}, {.scale = 0.125, .offset = 90, .chunk = 32}},
  };
}

struct Tensors {
  mx::array q, k, v, cotangent;
  std::optional<mx::array> segments, sinks;
};

Tensors tensors(const AttentionSize& n, const AttentionRule& rule, mx::Dtype dtype) {
  const auto shape = [](auto... sizes) { return mx::Shape{static_cast<int>(sizes)...}; };
  std::optional<mx::array> segments;
  if (!rule.segments.empty()) segments = mx::array(rule.segments.begin(), shape(n.batch, n.keys), mx::int32);
  std::optional<mx::array> sinks;
  if (!rule.sinks.empty()) sinks = mx::astype(mx::array(rule.sinks.begin(), shape(n.heads), mx::float32), dtype);
  return {normal(shape(n.batch, n.queries, n.heads, n.dim), dtype, 1),
          normal(shape(n.batch, n.keys, n.kv_heads, n.dim), dtype, 2),
          normal(shape(n.batch, n.keys, n.kv_heads, n.value_dim), dtype, 3),
          normal(shape(n.batch, n.queries, n.heads, n.value_dim), dtype, 4),
          segments,
          sinks};
}

AttentionArgs args(const AttentionRule& rule) {
  return {.scale = static_cast<float>(rule.scale),
          .window = static_cast<int>(rule.window),
          .softcap = static_cast<float>(rule.softcap),
          .offset = static_cast<int>(rule.offset),
          .causal = rule.causal,
          .chunk = static_cast<int>(rule.chunk)};
}

/// The rule with the numbers that the program is given: rounded to f32.
AttentionRule in_f32(AttentionRule rule) {
  rule.scale = static_cast<float>(rule.scale);
  return rule;
}

using Function = mx::array (*)(const mx::array&, const mx::array&, const mx::array&, const AttentionArgs&, const std::optional<mx::array>&,
                               const std::optional<mx::array>&);

/// {out, dq, dk, dv}, and with sinks their gradient.
std::vector<mx::array> results(Function function, const Tensors& x, const AttentionArgs& args) {
  const auto f = [&](const std::vector<mx::array>& in) {
    return std::vector<mx::array>{function(in[0], in[1], in[2], args, x.segments, x.sinks ? std::optional(in[3]) : std::nullopt)};
  };
  std::vector<mx::array> inputs{x.q, x.k, x.v};
  if (x.sinks) inputs.push_back(*x.sinks);
  auto [out, gradients] = mx::vjp(f, inputs, {x.cotangent});
  out.insert(out.end(), gradients.begin(), gradients.end());
  mx::eval(out);
  return out;
}

AttentionReference reference(const AttentionSize& n, const AttentionRule& rule, const Tensors& x, double unit, double inner = 0) {
  return oracle::attention(n, in_f32(rule), doubles(x.q), doubles(x.k), doubles(x.v), doubles(x.cotangent), unit, inner);
}

void expect_within(const std::vector<mx::array>& got, const AttentionReference& want, double factor) {
  const oracle::Bounded* wanted[] = {&want.out, &want.dq, &want.dk, &want.dv, &want.dsinks};
  const char* names[] = {"out", "dq", "dk", "dv", "dsinks"};
  ASSERT_EQ(got.size(), want.dsinks.values.empty() ? 4 : 5);
  for (std::size_t i = 0; i < got.size(); ++i) {
    auto bounds = wanted[i]->bounds;
    for (auto& bound : bounds) bound *= factor;
    testing::expect_close(got[i], wanted[i]->values, bounds, names[i]);
  }
}

const char* name(mx::Dtype dtype) { return dtype == mx::float32 ? ", f32" : dtype == mx::bfloat16 ? ", bf16" : ", f16"; }

TEST(Attention, EqualsTheOracle) {
  if (!cpu_kernels()) return;  // MLX's path is the next test's
  for (const auto dtype : testing::kDtypes) {
    for (const auto& c : cases()) {
      SCOPED_TRACE(std::string(c.name) + name(dtype));
      const auto x = tensors(c.size, c.rule, dtype);
      const auto got = results(attention, x, args(c.rule));
      EXPECT_EQ(got[0].dtype(), dtype);
      EXPECT_EQ(got[0].shape(), x.cotangent.shape());
      expect_within(got, reference(c.size, c.rule, x, testing::unit(dtype)), 1);
    }
  }
}

// The bounds hold for sums in any order. MLX takes delta as Σ p·dP instead of Σ dO·out, whose error is at most that of dP once more, hence 2. With
// softcap we compose the ops ourselves, in f32; without, MLX keeps scores, weights and their gradients in the dtype of q where it has no fused
// kernel.
TEST(Attention, MlxPathEqualsTheOracle) {
  for (const auto dtype : testing::kDtypes) {
    for (const auto& c : cases()) {
      SCOPED_TRACE(std::string(c.name) + name(dtype));
      const auto x = tensors(c.size, c.rule, dtype);
      const bool coarse = dtype != mx::float32 && c.rule.softcap == 0;
      const auto got = results(attention_mlx, x, args(c.rule));
      EXPECT_EQ(got[0].dtype(), dtype);
      expect_within(got, reference(c.size, c.rule, x, testing::unit(dtype), coarse ? testing::unit(dtype) : 0), 2);
    }
  }
}

/// Texts of unequal lengths packed end to end, each a trunk (numbers 0, 4, 8, …) with one to three branches, some of them empty.
std::vector<std::int32_t> branched_segments(std::int64_t keys) {
  std::vector<std::int32_t> result;
  for (std::int32_t text = 0; std::ssize(result) < keys; ++text) {
    result.insert(result.end(), 7 + text * 29 % 90, 4 * text);
    for (std::int32_t branch = 1; branch <= 1 + text % 3; ++branch) result.insert(result.end(), (text + branch) * 11 % 40, 4 * text + branch);
  }
  result.resize(keys);
  return result;
}

TEST(Attention, BranchesSeeTheirTrunk) {
  for (const auto& n : {AttentionSize{1, 700, 700, 4, 2, 32, 32}, AttentionSize{1, 12, 12, 1, 1, 64, 64}}) {
    for (const double softcap : {0.0, 3.0}) {
      const AttentionRule rule{.scale = 0.2, .softcap = softcap, .segments = branched_segments(n.keys), .branch = 4};
      const auto x = tensors(n, rule, mx::float32);
      auto with = args(rule);
      with.branch_bits = 2;
      const auto want = reference(n, rule, x, testing::kF32);
      for (const Function path : {attention, attention_mlx})
        testing::expect_close(path(x.q, x.k, x.v, with, x.segments, {}), want.out.values, want.out.bounds, "out");
      // And they matter: without them the values are others.
      auto apart = mx::max(mx::abs(mx::subtract(attention(x.q, x.k, x.v, with, x.segments), attention(x.q, x.k, x.v, args(rule), x.segments))));
      EXPECT_GT(apart.item<float>(), 0.1f);
    }
  }
}

TEST(Attention, BranchesAreRefusedWhereTheyMeanNothing) {
  const auto x = tensors({1, 8, 8, 1, 1, 16, 16}, {}, mx::float32);
  EXPECT_THROW(attention(x.q, x.k, x.v, {.branch_bits = 2}), std::invalid_argument);
  const auto segments = mx::zeros({1, 8}, mx::int32);
  EXPECT_THROW(attention(x.q, x.k, x.v, {.window = 4, .branch_bits = 2}, segments), std::invalid_argument);
  EXPECT_THROW(attention(x.q, x.k, x.v, {.branch_bits = 2, .chunk = 4}, segments), std::invalid_argument);
  EXPECT_THROW(attention(x.q, x.k, x.v, {.branch_bits = 17}, segments), std::invalid_argument);
}

// The gradients against differences of values in double: what the kernels are held to above is itself held to the definition.
TEST(Attention, OracleGradientsAreDifferences) {
  const AttentionSize n{1, 5, 5, 4, 2, 3, 2};
  for (AttentionRule rule : {AttentionRule{.scale = 0.7, .softcap = 2, .window = 3, .segments = {0, 1, 0, 1, 1}},
                             AttentionRule{.scale = 0.7, .chunk = 3}, AttentionRule{.scale = 0.7, .segments = {2, 2, 2, 1, 1}, .chunk = 2}}) {
    rule.sinks = sinks(n.heads);
    const auto x = tensors(n, rule, mx::float32);
    const testing::Values q = doubles(x.q), k = doubles(x.k), v = doubles(x.v), cotangent = doubles(x.cotangent);
    const auto at = oracle::attention(n, rule, q, k, v, cotangent, 0);
    const auto value = [&](const testing::Values& q, const testing::Values& k, const testing::Values& v) {
      return oracle::attention(n, rule, q, k, v, cotangent, 0).out.values;
    };
    const auto dq = testing::numeric_gradient([&](const testing::Values& y) { return value(y, k, v); }, q, cotangent);
    const auto dk = testing::numeric_gradient([&](const testing::Values& y) { return value(q, y, v); }, k, cotangent);
    const auto dv = testing::numeric_gradient([&](const testing::Values& y) { return value(q, k, y); }, v, cotangent);
    for (std::size_t i = 0; i < dq.size(); ++i) EXPECT_NEAR(at.dq.values[i], dq[i], testing::kDifference);
    for (std::size_t i = 0; i < dk.size(); ++i) EXPECT_NEAR(at.dk.values[i], dk[i], testing::kDifference);
    for (std::size_t i = 0; i < dv.size(); ++i) EXPECT_NEAR(at.dv.values[i], dv[i], testing::kDifference);
    const auto of_sinks = [&](const testing::Values& y) {
      auto with = rule;
      with.sinks = y;
      return oracle::attention(n, with, q, k, v, cotangent, 0).out.values;
    };
    const auto dsinks = testing::numeric_gradient(of_sinks, rule.sinks, cotangent);
    for (std::size_t i = 0; i < dsinks.size(); ++i) EXPECT_NEAR(at.dsinks.values[i], dsinks[i], testing::kDifference);
  }
}

// A sink that outweighs all keys takes the values away, one that weighs nothing leaves them; neither overflows, nor do their gradients.
TEST(Attention, SurvivesLargeSinks) {
  for (const AttentionSize& n : {AttentionSize{1, 80, 80, 2, 1, 32, 32}, AttentionSize{1, 3, 80, 2, 1, 32, 32}}) {
    for (const float softcap : {0.0f, 5.0f}) {
      const AttentionArgs args{.scale = 0.2f, .softcap = softcap, .offset = static_cast<int>(n.keys - n.queries)};
      auto x = tensors(n, {}, mx::float32);
      const auto without = results(attention, x, args);
      for (const float logit : {-1e4f, 1e4f}) {
        x.sinks = mx::full({2}, logit);
        const auto got = results(attention, x, args);
        for (std::size_t i = 0; i < 4; ++i) {
          EXPECT_TRUE(mx::array_equal(got[i], logit < 0 ? without[i] : mx::zeros_like(got[i])).item<bool>()) << i << " at " << logit;
        }
        EXPECT_TRUE(mx::array_equal(got[4], mx::zeros({2})).item<bool>());
      }
    }
  }
}

// Sinks may be more exact than queries, and asked for alone.
TEST(Attention, TakesSinksOfTheirOwnDtype) {
  const AttentionSize n{1, 40, 40, 2, 1, 32, 32};
  const AttentionRule rule{.scale = 0.2, .sinks = sinks(2)};
  const auto x = tensors(n, rule, mx::bfloat16);
  const auto want = reference(n, rule, x, testing::unit(mx::bfloat16), cpu_kernels() ? 0 : testing::unit(mx::bfloat16));
  const auto f = [&](const std::vector<mx::array>& in) { return std::vector{attention(x.q, x.k, x.v, args(rule), {}, in[0])}; };
  const auto got = mx::vjp(f, {mx::astype(*x.sinks, mx::float32)}, {x.cotangent}).second[0];
  EXPECT_EQ(got.dtype(), mx::float32);
  auto bounds = want.dsinks.bounds;
  for (auto& bound : bounds) bound *= cpu_kernels() ? 1 : 2;
  testing::expect_close(got, want.dsinks.values, bounds, "dsinks");
}

TEST(Attention, GivesTheSameBitsOnAnyNumberOfThreads) {
  for (const auto& n : {AttentionSize{1, 300, 300, 9, 3, 64, 64}, AttentionSize{2, 1, 1300, 4, 2, 64, 64}}) {
    const AttentionRule rule{.scale = 0.125, .offset = n.keys - n.queries, .sinks = sinks(n.heads)};
    const auto x = tensors(n, rule, mx::bfloat16);
    testing::expect_thread_independent([&] { return results(attention, x, args(rule)); });
  }
}

// Tensors of twice the length may take twice the memory, and blocks do not grow: the peak at most doubles, where scores held whole
// would be four times as many.
TEST(Attention, MemoryIsLinearInTheLength) {
  if (!cpu_kernels()) GTEST_SKIP() << "the blockwise kernels are the CPU's";
  const auto peak = [](std::int64_t length) {
    const AttentionSize n{1, length, length, 4, 2, 16, 16};
    const auto x = tensors(n, {}, mx::bfloat16);
    mx::synchronize();
    const auto before = mx::get_active_memory();
    mx::reset_peak_memory();
    results(attention, x, {.scale = 0.25f});
    return mx::get_peak_memory() - before;
  };
  const auto once = peak(1024), twice = peak(2048);
  EXPECT_LE(twice, 2 * once);
  EXPECT_LT(twice, std::size_t{2048} * 2048 * 4) << "as much as the scores of one head";
}

// Scores that differ by thousands: weights become 0 or 1, and nothing overflows on the way.
TEST(Attention, SurvivesLargeScores) {
  for (const float softcap : {0.0f, 50.0f}) {
    auto x = tensors({1, 80, 80, 2, 1, 64, 64}, {}, mx::float32);
    x.q = mx::multiply(x.q, mx::array(1e4f));
    for (const auto& y : results(attention, x, {.scale = 1, .softcap = softcap})) EXPECT_TRUE(mx::all(mx::isfinite(y)).item<bool>());
    const auto out = attention(x.q, x.k, x.v, {.scale = 1, .softcap = softcap});
    // A mean with weights cannot leave the range of the values by more than its own rounding, (S + 16) units.
    EXPECT_LE(mx::max(mx::abs(out)).item<float>(), mx::max(mx::abs(x.v)).item<float>() * (1 + 96 * testing::kF32));
  }
}

// The same in f16 up to the largest scores that it holds, of some 3e4, whose exponentials it would not.
TEST(Attention, SurvivesLargeScoresInF16) {
  for (const Function path : {attention, attention_mlx}) {
    for (const float softcap : {0.0f, 50.0f}) {
      auto x = tensors({1, 80, 80, 2, 1, 64, 64}, {}, mx::float16);
      x.q = mx::multiply(x.q, mx::array(500.0f, mx::float16));  // |q·k| stays below 500 · 64
      for (const auto& y : results(path, x, {.scale = 1, .softcap = softcap})) EXPECT_TRUE(mx::all(mx::isfinite(y)).item<bool>());
    }
  }
}

TEST(Attention, TakesViewsAndSingleGradients) {
  const AttentionSize n{1, 40, 40, 2, 1, 32, 32};
  const AttentionRule rule{0.2};
  auto x = tensors(n, rule, mx::float32);
  const auto want = reference(n, rule, x, testing::kF32);
  const auto turned = [](const mx::array& y) { return mx::swapaxes(mx::contiguous(mx::swapaxes(y, 1, 2)), 1, 2); };
  const auto f = [&](const mx::array& v) { return mx::sum(mx::multiply(attention(turned(x.q), turned(x.k), turned(v), args(rule)), x.cotangent)); };
  testing::expect_close(mx::grad(f)(x.v), want.dv.values, want.dv.bounds, "dv");
}

TEST(Attention, EmptyInputsGiveEmptyResults) {
  const auto none = attention(mx::zeros({2, 0, 4, 8}), mx::zeros({2, 3, 2, 8}), mx::zeros({2, 3, 2, 8}), {});
  EXPECT_EQ(none.shape(), (mx::Shape{2, 0, 4, 8}));
}

TEST(Attention, RefusesWhatDoesNotFit) {
  const auto q = mx::zeros({1, 4, 4, 8}), k = mx::zeros({1, 4, 2, 8});
  EXPECT_THROW(attention(mx::zeros({4, 4, 8}), k, k, {}), std::invalid_argument);
  EXPECT_THROW(attention(mx::zeros({1, 4, 3, 8}), k, k, {}), std::invalid_argument);
  EXPECT_THROW(attention(mx::zeros({1, 4, 4, 16}), k, k, {}), std::invalid_argument);
  EXPECT_THROW(attention(mx::zeros({2, 4, 4, 8}), k, k, {}), std::invalid_argument);
  EXPECT_THROW(attention(q, k, mx::zeros({1, 5, 2, 8}), {}), std::invalid_argument);
  EXPECT_THROW(attention(q, k, mx::astype(k, mx::bfloat16), {}), std::invalid_argument);
  EXPECT_THROW(attention(mx::astype(q, mx::int32), mx::astype(k, mx::int32), mx::astype(k, mx::int32), {}), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {.offset = 1}), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {.window = -1}), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {.chunk = -1}), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {.offset = 1, .causal = false, .chunk = 2}), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {}, std::nullopt, mx::zeros({2})), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {}, std::nullopt, mx::zeros({4}, mx::int32)), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {}, mx::zeros({1, 3}, mx::int32)), std::invalid_argument);
  EXPECT_THROW(attention(q, k, k, {}, mx::zeros({1, 4})), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
