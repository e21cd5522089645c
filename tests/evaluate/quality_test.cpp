#include "evaluate/quality.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/forward.h"

namespace lquant::evaluate {
namespace {

constexpr double kEps = 0x1p-24;

/// models/tiny in f32, so that both computations see the same logits to f32's rounding; `bits` > 0 rounds every linear.
LoadedModel tiny(int bits) {
  auto loaded = LoadedModel::load(model::Model::open(checkpoint::Checkpoint::open(std::string(LQUANT_SOURCE_DIR) + "/models/tiny")), mx::float32);
  if (bits > 0)
    for (const auto* linear : loaded.spec.linears()) {
      auto& w = loaded.tensors.at(linear->path + ".weight");
      const auto parts = mx::quantize(w, 64, bits);
      w = mx::dequantize(parts[0], parts[1], parts[2], 64, bits);
      w.eval();
    }
  return loaded;
}

std::vector<calibration::Batch> batches() {
  std::vector<calibration::Example> examples;
  for (int i = 0; i < 5; ++i) {
    auto ids = mx::random::randint(1, 8000, {10 + 3 * i}, mx::int32, mx::random::key(i));
    ids.eval();
    examples.push_back({{ids.data<std::int32_t>(), ids.data<std::int32_t>() + ids.size()}, i});
  }
  return calibration::make_batches(examples, 3, 30, true);
}

/// Logits of a batch as doubles' rows.
std::vector<std::vector<double>> log_probabilities(const LoadedModel& m, const calibration::Batch& batch) {
  model::Context context;
  context.segments = batch.segments;
  auto logits = mx::contiguous(mx::astype(model::forward(m.spec, m.tensors, m.formats, batch.ids, m.dtype, context), mx::float32));
  logits.eval();
  const int vocab = logits.shape(-1);
  std::vector<std::vector<double>> rows;
  for (std::size_t t = 0; t < logits.size() / vocab; ++t) {
    const float* z = logits.data<float>() + t * vocab;
    std::vector<double> row(z, z + vocab);
    const double top = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const double v : row) sum += std::exp(v - top);
    for (double& v : row) v -= top + std::log(sum);
    rows.push_back(std::move(row));
  }
  return rows;
}

struct Expected {
  double nll = 0, se = 0, kl = 0, p99 = 0, top1 = 0;
  std::int64_t tokens = 0;
};

Expected recompute(const LoadedModel& student, const LoadedModel& teacher) {
  Expected out;
  std::vector<double> kls;
  std::vector<std::pair<double, double>> rows;  // Σ nll, tokens
  for (const auto& batch : batches()) {
    const auto s = log_probabilities(student, batch), t = log_probabilities(teacher, batch);
    auto targets = mx::contiguous(batch.targets), mask = mx::contiguous(batch.next_mask);
    mx::eval(targets, mask);
    for (int r = 0; r < batch.rows(); ++r) {
      rows.push_back({0, 0});
      for (int i = r * batch.length(); i < (r + 1) * batch.length(); ++i) {
        if (mask.data<float>()[i] == 0) continue;
        double kl = 0;
        for (std::size_t v = 0; v < s[i].size(); ++v) kl += std::exp(t[i][v]) * (t[i][v] - s[i][v]);
        kls.push_back(kl);
        rows.back().first -= s[i][targets.data<std::int32_t>()[i]];
        rows.back().second += 1;
        out.top1 += std::max_element(s[i].begin(), s[i].end()) - s[i].begin() == std::max_element(t[i].begin(), t[i].end()) - t[i].begin();
      }
    }
  }
  for (const auto& [sum, count] : rows) out.nll += sum, out.tokens += static_cast<std::int64_t>(count);
  out.nll /= out.tokens;
  double squares = 0;
  for (const auto& [sum, count] : rows) squares += std::pow(sum - out.nll * count, 2);
  out.se = std::sqrt(squares * rows.size() / (rows.size() - 1.0)) / out.tokens;
  for (const double kl : kls) out.kl += kl / kls.size();
  std::sort(kls.begin(), kls.end());
  out.p99 = kls[static_cast<std::size_t>(0.99 * (kls.size() - 1))];
  out.top1 /= kls.size();
  return out;
}

// An f32 logit is a sum of 256 products whose rounding errors are at most 256·eps of Σ|h·w|, for logits below 30 some 30 · 16 (the
// products mostly cancel): 256 · 2^-24 · 480 ≈ 7e-3 at the very worst and √256 times less, 5e-4, as errors fall. Logarithms of
// probabilities carry twice that.
constexpr double kLogitError = 1e-3;

TEST(Measure, IsWhatDoublesSay) {
  const auto teacher = tiny(0), student = tiny(3);
  std::int64_t told = 0;
  const auto got = measure(student, &teacher, batches(), [&](std::int64_t tokens) { told = tokens; });
  const auto want = recompute(student, teacher);
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(told, want.tokens);
  EXPECT_NEAR(got.nll, want.nll, kLogitError);
  EXPECT_NEAR(got.nll_se, want.se, kLogitError);
  EXPECT_GT(want.se, 10 * kLogitError);
  EXPECT_NEAR(got.kl, want.kl, kLogitError);
  EXPECT_GT(want.kl, 10 * kLogitError);
  EXPECT_NEAR(got.kl_p99, want.p99, kLogitError);
  EXPECT_NEAR(got.teacher_nll, recompute(teacher, teacher).nll, kLogitError);
  EXPECT_NEAR(got.top1, want.top1, 1.5 / want.tokens);  // a tie within rounding may fall either way
  EXPECT_DOUBLE_EQ(got.perplexity(), std::exp(got.nll));
  EXPECT_DOUBLE_EQ(got.perplexity_se(), std::exp(got.nll) * got.nll_se);
  const auto json = got.to_json();
  EXPECT_EQ(json.at("kl").get<double>(), got.kl);
  EXPECT_EQ(json.at("teacher_perplexity").get<double>(), std::exp(got.teacher_nll));
}

TEST(Measure, AModelIsNoDistanceFromItself) {
  const auto model = tiny(0);
  const auto got = measure(model, &model, batches());
  // Both sides are the same numbers: what is left is the rounding of Σ p·(log p − log p) over 8,192 terms.
  EXPECT_LE(std::abs(got.kl), 8192 * kEps);
  EXPECT_LE(std::abs(got.kl_p99), 8192 * kEps);
  EXPECT_EQ(got.top1, 1);
  EXPECT_EQ(got.teacher_nll, got.nll);
}

TEST(Measure, WithoutATeacherThereIsNoKl) {
  const auto got = measure(tiny(0), nullptr, batches());
  EXPECT_FALSE(got.has_teacher);
  EXPECT_FALSE(got.to_json().contains("kl"));
  EXPECT_GT(got.nll, 0);
}

TEST(Measure, OfOneRowHasNoErrors) {
  const auto teacher = tiny(0), student = tiny(3);
  const auto all = batches();
  const auto got = measure(student, &teacher, {calibration::slice_rows(all.front(), 0, 1)});
  EXPECT_GT(got.kl, 0);
  EXPECT_TRUE(std::isnan(got.nll_se) && std::isnan(got.kl_se) && std::isnan(got.perplexity_se()));
  const auto json = got.to_json();
  for (const char* key : {"nll_se", "kl_se", "perplexity_se"}) EXPECT_TRUE(json.at(key).is_null()) << key;
}

TEST(Measure, KeepsTheRowsForPairedErrors) {
  const auto teacher = tiny(0), student = tiny(3);
  const auto got = measure(student, &teacher, batches());
  std::int64_t rows = 0, tokens = 0;
  for (const auto& batch : batches()) rows += batch.rows();
  for (const auto& row : got.kl_rows) tokens += row.tokens;
  EXPECT_EQ(static_cast<std::int64_t>(got.kl_rows.size()), rows);
  EXPECT_EQ(tokens, got.tokens);
  EXPECT_EQ(token_mean(got.kl_rows).value, got.kl);
  EXPECT_EQ(token_mean(got.kl_rows).error, got.kl_se);
}

TEST(Measure, RefusesOtherVocabulariesAndNoTokens) {
  const auto model = tiny(0);
  auto other = model;
  auto& weight = other.tensors.at(other.spec.embedding.path + ".weight");  // tied: the head too
  weight = mx::slice(weight, {0, 0}, {8000, weight.shape(1)});
  EXPECT_THROW(measure(model, &other, batches()), Error);
  EXPECT_THROW(measure(model, nullptr, {}), Error);
  const auto one = calibration::make_batches({{{5}, 0}}, 1, 8, false);  // a single token predicts nothing that is there
  EXPECT_THROW(measure(model, nullptr, one), Error);
}

}  // namespace
}  // namespace lquant::evaluate
