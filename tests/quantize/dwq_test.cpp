#include "quantize/dwq.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>

#include "base/error.h"
#include "oracle/quantize_tiny.h"

namespace lquant::quantize {
namespace {

using calibration::Batch;

/// The dense teacher's hidden states, made when asked for.
class DenseTargets : public calibration::Targets {
 public:
  explicit DenseTargets(const oracle::TinyPair& pair) : pair_(pair), head_(model::head(pair.spec, pair.teacher, {}, mx::float32)) {}
  calibration::Target rows(const std::string&, std::size_t, const Batch& batch, int begin, int end) override {
    const auto part = calibration::slice_rows(batch, begin, end);
    model::Context context;
    context.segments = part.segments;
    const auto h = model::hidden_states(pair_.spec, pair_.teacher, {}, part.ids, mx::float32, context);
    return {mx::reshape(h, {-1, h.shape(-1)}), std::nullopt, std::nullopt};
  }
  const model::Head& head() const override { return head_; }

 private:
  const oracle::TinyPair& pair_;
  model::Head head_;
};

std::vector<Batch> random_batches(int count, std::uint64_t seed) {
  std::vector<calibration::Example> examples;
  for (int i = 0; i < 4 * count; ++i) {
    auto ids = mx::random::randint(0, 48, {12 + i % 5}, mx::int32, mx::random::key(seed + i));
    ids.eval();
    examples.push_back({{ids.data<std::int32_t>(), ids.data<std::int32_t>() + ids.size()}, 0});
  }
  return calibration::make_batches(examples, 4, 20, false);
}

struct Outcome {
  DwqProgress progress;
  model::Tensors packed, state;
  std::vector<DwqReport> reports;
  int kept = 0;
};

class DwqTest : public ::testing::Test {
 protected:
  Student fresh() const { return Student(pair.spec, pair.formats, pair.packed, pair.teacher, true); }

  /// Trains from `progress` on until `stop` steps are done.
  Outcome train(Student& student, const DwqOptions& options, DwqProgress progress = {}, int stop = 1 << 20) {
    DenseTargets targets(pair);
    DwqTrainer trainer(pair.spec, student, mx::float32, batches, valid, targets, options, mx::distributed::init());
    Outcome run;
    run.progress = progress;
    trainer.run(
        run.progress,
        [&](const DwqReport& report) {
          run.reports.push_back(report);
          return report.step < stop;
        },
        [&] { ++run.kept; });
    run.packed = student.pack();
    run.state = student.state();
    return run;
  }
  Outcome train(const DwqOptions& options) {
    auto student = fresh();
    return train(student, options);
  }

  oracle::TinyPair pair{3};
  std::vector<Batch> batches = random_batches(20, 100), valid = random_batches(2, 5000);
  DwqOptions options;
};

double largest_difference(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(mx::subtract(mx::astype(a, mx::float32), mx::astype(b, mx::float32)))).item<float>();
}

TEST_F(DwqTest, LowersTheDistanceFromTheTeacher) {
  auto student = fresh();
  const auto run = train(student, options);
  EXPECT_EQ(run.progress.step, 20);
  EXPECT_EQ(run.progress.losses.size(), 20u);
  EXPECT_LT(run.progress.best, 0.95 * run.progress.start);
  EXPECT_GT(run.progress.best_step, 0);
  EXPECT_GE(run.kept, 2);  // the start and the best
  // What was measured last is what is packed: KL of the packed tensors, by MLX's own ops.
  double kl = 0, tokens = 0;
  for (const auto& batch : valid) {
    model::Context context;
    context.segments = batch.segments;
    const auto t = mx::log(mx::softmax(model::forward(pair.spec, pair.teacher, {}, batch.ids, mx::float32, context), -1));
    const auto s = mx::log(mx::softmax(model::forward(pair.spec, run.packed, pair.formats, batch.ids, mx::float32, context), -1));
    kl += mx::sum(mx::multiply(mx::sum(mx::multiply(mx::exp(t), mx::subtract(t, s)), -1), batch.mask)).item<float>();
    tokens += batch.tokens;
  }
  ASSERT_TRUE(run.reports.back().validation.has_value());
  // Logits of size below 10 carry relative errors of some tens of roundings through two layers (64 · 2^-24 · 10 ≈ 4e-5), and KL moves
  // by at most twice the largest of them.
  EXPECT_NEAR(*run.reports.back().validation, kl / tokens, 1e-4);
}

TEST_F(DwqTest, PartsOfABatchAddUpToTheWhole) {
  options.micro_tokens = 1 << 20;
  batches.erase(batches.begin() + 1, batches.end());
  ASSERT_GT(batches[0].rows(), 2);
  const auto whole = train(options);
  options.micro_tokens = 1;  // a row at a time
  const auto parts = train(options);
  // The KL of a row is the same, whatever lies beside it; only sums change their order.
  EXPECT_NEAR(parts.progress.losses[0], whole.progress.losses[0], 1e-5 * whole.progress.losses[0]);
  // Adam's first moment after one step is a tenth of the gradient: all parts' share is in it. The gradient of scales is a sum over
  // tokens and group of terms up to 15 times its own size; 200 · eps · 15 · terms/result of order 10 is below 1e-3 of the largest.
  for (const auto& [name, m] : whole.state) {
    if (!name.ends_with(".ma") && !name.ends_with(".mc")) continue;
    EXPECT_LE(largest_difference(m, parts.state.at(name)), 1e-3 * mx::max(mx::abs(m)).item<float>() + 1e-12) << name;
  }
}

TEST_F(DwqTest, CheckpointedGradientsAreTheSame) {
  batches.erase(batches.begin() + 1, batches.end());
  const auto plain = train(options);
  options.grad_checkpoint = true;
  const auto checkpointed = train(options);
  EXPECT_NEAR(checkpointed.progress.losses[0], plain.progress.losses[0], 1e-6 * plain.progress.losses[0]);
  for (const auto& [name, m] : plain.state)
    if (name.ends_with(".ma") || name.ends_with(".mc")) {
      EXPECT_GT(mx::max(mx::abs(checkpointed.state.at(name))).item<float>(), 0) << name;
      // As above: the same sums, possibly in another order.
      EXPECT_LE(largest_difference(m, checkpointed.state.at(name)), 1e-3 * mx::max(mx::abs(m)).item<float>() + 1e-12) << name;
    }
}

TEST_F(DwqTest, InterruptedAndContinuedIsUninterruptedBitForBit) {
  const auto whole = train(options);
  auto first = fresh();
  const auto begun = train(first, options, {}, 7);
  ASSERT_EQ(begun.progress.step, 7);
  auto second = fresh();
  second.restore(begun.state);
  const auto ended = train(second, options, begun.progress);
  EXPECT_EQ(ended.progress.losses, whole.progress.losses);
  EXPECT_EQ(ended.progress.best, whole.progress.best);
  EXPECT_EQ(ended.progress.best_step, whole.progress.best_step);
  EXPECT_EQ(ended.progress.start, whole.progress.start);
  EXPECT_EQ(begun.kept + ended.kept, whole.kept);
  for (const auto& [name, value] : whole.packed) EXPECT_TRUE(oracle::same(value, ended.packed.at(name))) << name;
  for (const auto& [name, value] : whole.state) EXPECT_TRUE(oracle::same(value, ended.state.at(name))) << name;
}

TEST_F(DwqTest, TopTargetsOverTheWholeVocabularyAreTheWhole) {
  // The largest k = V logits are all of them, so both kinds of targets give the same loss.
  class AllLogits : public DenseTargets {
   public:
    using DenseTargets::DenseTargets;
    calibration::Target rows(const std::string& split, std::size_t i, const Batch& batch, int begin, int end) override {
      const auto hidden = *DenseTargets::rows(split, i, batch, begin, end).hidden;
      const auto logits = model::logits(head(), hidden);
      const auto ids = mx::broadcast_to(mx::arange(0, 48, mx::int32), logits.shape());
      return {std::nullopt, logits, mx::contiguous(ids)};
    }
  };
  auto student = fresh();
  DenseTargets dense(pair);
  AllLogits all(pair);
  const auto group = mx::distributed::init();
  const double a = DwqTrainer(pair.spec, student, mx::float32, batches, valid, dense, options, group).validate();
  const double b = DwqTrainer(pair.spec, student, mx::float32, batches, valid, all, options, group).validate();
  EXPECT_GT(a, 0.01);
  EXPECT_NEAR(a, b, 1e-5);  // sums of 48 exponentials and logits below 10 in another order: 48 · 10 · 2^-24 = 3e-5 at the very worst
}

TEST_F(DwqTest, LossThatIsNoNumberIsAnError) {
  auto broken = pair.packed;
  broken.insert_or_assign("model.norm.weight", mx::full({64}, std::nanf("")));
  Student student(pair.spec, pair.formats, broken, {}, false);
  EXPECT_THROW(train(student, options), Error);
}

TEST(Dwq, DefaultCodeRateFallsWithTheRootOfTheSteps) {
  EXPECT_FLOAT_EQ(default_code_rate(0), 0.008f);
  EXPECT_FLOAT_EQ(default_code_rate(36), 0.008f);
  EXPECT_FLOAT_EQ(default_code_rate(64), 0.006f);
  EXPECT_FLOAT_EQ(default_code_rate(256), 0.003f);
}

TEST(Dwq, DiagnosisTellsWhichWayToTurnTheRate) {
  const auto losses = [](auto f) {
    std::vector<double> out;
    for (int i = 0; i < 40; ++i) out.push_back(f(i));
    return out;
  };
  const auto falling = losses([](int i) { return 1.0 / (1 + 0.1 * i); });
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_EQ(diagnose(falling, 1, 0.3), "");
  EXPECT_EQ(diagnose({1, 2, 3}, 1, 2), "");  // too few to tell
  EXPECT_TRUE(has(diagnose(falling, 1, 1), "never improved"));
  EXPECT_TRUE(has(diagnose(losses([](int i) { return 1 + 0.01 * i; }), 1, 0.9), "oscillates"));
  EXPECT_TRUE(has(diagnose(losses([](int i) { return i % 2 ? 2.0 : 0.1; }), 1, 0.9), "oscillates"));
  EXPECT_TRUE(has(diagnose(losses([](int) { return 1.0; }), 1, 0.99), "barely moved"));
}

}  // namespace
}  // namespace lquant::quantize
