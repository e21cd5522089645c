#include "quantize/dwq.h"

#include <gtest/gtest.h>
#include <mlx/compile.h>
#include <mlx/mlx.h>

#include <cmath>

#include "base/error.h"
#include "kernels/primitive.h"
#include "oracle/quantize_tiny.h"

namespace lquant::quantize {
namespace {

using calibration::Batch;

/// The dense teacher's hidden states, made when asked for.
class DenseTargets : public calibration::Targets {
 public:
  explicit DenseTargets(const oracle::TinyPair& pair) : pair_(pair), head_(model::head(pair.spec, pair.teacher, {}, pair.dtype)) {}
  calibration::Target rows(const std::string&, std::size_t, const Batch& batch, int begin, int end) override {
    const auto part = calibration::slice_rows(batch, begin, end);
    model::Context context;
    context.segments = part.segments;
    const auto h = model::hidden_states(pair_.spec, pair_.teacher, {}, part.ids, pair_.dtype, context);
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

/// Training of a model of each dtype.
class DwqTest : public ::testing::TestWithParam<mx::Dtype> {
 protected:
  Student fresh() const { return Student(pair.spec, pair.formats, pair.packed, pair.teacher, true); }

  /// Trains from `progress` on until `stop` steps are done.
  Outcome train(Student& student, const DwqOptions& options, DwqProgress progress = {}, int stop = 1 << 20) {
    DenseTargets targets(pair);
    DwqTrainer trainer(pair.spec, student, pair.dtype, batches, valid, targets, options, mx::distributed::init());
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

  /// Of a mean KL, whose size is the square of what rounding moves by a part of itself: twice that part, and as much again for gradients.
  double rounding() const { return 4 * oracle::rounding_of(2, pair.dtype); }

  oracle::TinyPair pair{3, 1, GetParam()};
  std::vector<Batch> batches = random_batches(20, 100), valid = random_batches(2, 5000);
  DwqOptions options;
};

double largest_difference(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(mx::subtract(mx::astype(a, mx::float32), mx::astype(b, mx::float32)))).item<float>();
}

INSTANTIATE_TEST_SUITE_P(Dtypes, DwqTest, ::testing::ValuesIn(oracle::kDtypes), [](const auto& info) { return oracle::name_of(info.param); });

/// What a device runs: the pass traced once for each shape, rows padded, nothing evaluated in between. MLX's simplification of the graph leaves every
/// operation as it is (f16 is never compiled), and padding changes no sum over tokens but by zeros, so the bytes are those of the pass without
/// compiling.
TEST_P(DwqTest, CompiledStepsEndInTheSameBytes) {
  const kernels::MlxOpsOnly gpu_like;
  batches.erase(batches.begin() + 8, batches.end());
  DwqOptions options;
  const auto plain = train(options);
  mx::set_compile_mode(mx::CompileMode::no_fuse);  // fusing needs a compiler at run time on a CPU
  options.compile = true;
  const auto compiled = train(options);
  mx::set_compile_mode(mx::CompileMode::enabled);
  ASSERT_EQ(compiled.progress.losses.size(), plain.progress.losses.size());
  EXPECT_EQ(compiled.progress.losses, plain.progress.losses);
  for (const auto& [name, tensor] : plain.state) EXPECT_TRUE(oracle::same(compiled.state.at(name), tensor)) << name;
}

TEST_P(DwqTest, LowersTheDistanceFromTheTeacher) {
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
    const auto log_p = [&](const model::Tensors& tensors, const model::Formats& formats) {
      const auto logits = model::forward(pair.spec, tensors, formats, batch.ids, pair.dtype, context);
      return mx::log(mx::softmax(mx::astype(logits, mx::float32), -1));
    };
    const auto t = log_p(pair.teacher, {}), s = log_p(run.packed, pair.formats);
    kl += mx::sum(mx::multiply(mx::sum(mx::multiply(mx::exp(t), mx::subtract(t, s)), -1), batch.mask)).item<float>();
    tokens += batch.tokens;
  }
  ASSERT_TRUE(run.reports.back().validation.has_value());
  // Logits of size below 10 carry relative errors of some tens of roundings through two layers (64 · 2^-24 · 10 ≈ 4e-5), and KL moves
  // by at most twice the largest of them. In 16 bits the logits themselves are rounded here, and in the loss they may not be.
  const double logits = pair.dtype == mx::float32 ? 0 : 10 * oracle::unit_of(pair.dtype);
  EXPECT_NEAR(*run.reports.back().validation, kl / tokens, 1e-4 + 2 * logits);
}

TEST_P(DwqTest, PartsOfABatchAddUpToTheWhole) {
  options.micro_tokens = 1 << 20;
  batches.erase(batches.begin() + 1, batches.end());
  ASSERT_GT(batches[0].rows(), 2);
  const auto whole = train(options);
  options.micro_tokens = 1;  // a row at a time
  const auto parts = train(options);
  // The KL of a row is the same, whatever lies beside it; only sums change their order.
  EXPECT_NEAR(parts.progress.losses[0], whole.progress.losses[0], rounding() * whole.progress.losses[0]);
  // Adam's first moment after one step is a tenth of the gradient: all parts' share is in it. The gradient of scales is a sum over
  // tokens and group of terms up to 15 times its own size; 200 · eps · 15 · terms/result of order 10 is below 1e-3 of the largest.
  for (const auto& [name, m] : whole.state) {
    if (!name.ends_with(".ma") && !name.ends_with(".mc")) continue;
    EXPECT_LE(largest_difference(m, parts.state.at(name)), (1e-3 + rounding()) * mx::max(mx::abs(m)).item<float>() + 1e-12) << name;
  }
}

TEST_P(DwqTest, CheckpointedGradientsAreTheSame) {
  batches.erase(batches.begin() + 1, batches.end());
  const auto plain = train(options);
  options.grad_checkpoint = true;
  const auto checkpointed = train(options);
  EXPECT_NEAR(checkpointed.progress.losses[0], plain.progress.losses[0], rounding() * plain.progress.losses[0]);
  for (const auto& [name, m] : plain.state)
    if (name.ends_with(".ma") || name.ends_with(".mc")) {
      EXPECT_GT(mx::max(mx::abs(checkpointed.state.at(name))).item<float>(), 0) << name;
      // As above: the same sums, possibly in another order.
      EXPECT_LE(largest_difference(m, checkpointed.state.at(name)), (1e-3 + rounding()) * mx::max(mx::abs(m)).item<float>() + 1e-12) << name;
    }
}

TEST_P(DwqTest, InterruptedAndContinuedIsUninterruptedBitForBit) {
  batches.erase(batches.begin() + 12, batches.end());
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

TEST_P(DwqTest, TopTargetsOverTheWholeVocabularyAreTheWhole) {
  // The largest k = V logits are all of them, so both kinds of targets give the same loss.
  class AllLogits : public DenseTargets {
   public:
    using DenseTargets::DenseTargets;
    calibration::Target rows(const std::string& split, std::size_t i, const Batch& batch, int begin, int end) override {
      const auto hidden = *DenseTargets::rows(split, i, batch, begin, end).hidden;
      const auto logits = mx::astype(model::logits(head(), hidden), mx::float32);
      const auto ids = mx::broadcast_to(mx::arange(0, 48, mx::int32), logits.shape());
      return {std::nullopt, logits, mx::contiguous(ids)};
    }
  };
  auto student = fresh();
  DenseTargets dense(pair);
  AllLogits all(pair);
  const auto group = mx::distributed::init();
  const double a = DwqTrainer(pair.spec, student, pair.dtype, batches, valid, dense, options, group).validate();
  const double b = DwqTrainer(pair.spec, student, pair.dtype, batches, valid, all, options, group).validate();
  EXPECT_GT(a, 0.01);
  // Sums of 48 exponentials and logits below 10 in another order: 48 · 10 · 2^-24 = 3e-5 at the very worst. The logits given are rounded to 16 bits.
  EXPECT_NEAR(a, b, 1e-5 + (pair.dtype == mx::float32 ? 0 : 2 * 10 * oracle::unit_of(pair.dtype)));
}

TEST_P(DwqTest, LossThatIsNoNumberIsAnError) {
  auto broken = pair.packed;
  broken.insert_or_assign("model.norm.weight", mx::full({64}, std::nanf(""), pair.dtype));
  Student student(pair.spec, pair.formats, broken, {}, false);
  EXPECT_THROW(train(student, options), Error);
}

// The same texts, the same model, rounded. Roundings make other codes of some weights, and training goes its own way from there: over eight models
// f32 took off 15 % of the divergence on average, bf16 16 % and f16 17 %; of one model the three differ by a fifth.
TEST_P(DwqTest, LearnsAboutAsMuchAsInSinglePrecision) {
  const auto gain = [&](mx::Dtype dtype) {
    double sum = 0;
    for (const int seed : {1, 2}) {
      pair = oracle::TinyPair(3, seed, dtype);
      const auto progress = train(options).progress;
      sum += 1 - progress.best / progress.start;
    }
    return sum;
  };
  static const double wanted = gain(mx::float32);  // once for all dtypes
  EXPECT_GT(wanted, 0.3);
  if (GetParam() != mx::float32) EXPECT_GT(gain(GetParam()), 0.75 * wanted);
}

// Tokens that count little have small gradients. A multiple of f16's smallest number is all that is left of those of hidden states, of some 2^-7, at
// 2^-16; the trainer's own multiple of 2^8 leaves half a step, 2^-25, beside 2^-15: a thousandth. Else nothing changes but by a power of two.
TEST_P(DwqTest, SmallGradientsAreKept) {
  batches.erase(batches.begin() + 1, batches.end());
  const auto state = [&](float weight) {
    const auto kept = batches[0].mask;
    batches[0].mask = mx::multiply(kept, mx::array(weight));
    auto trained = train(options).state;
    batches[0].mask = kept;
    return trained;
  };
  const float little = std::ldexp(1.0f, -16);
  const auto small = state(little), whole = state(1);
  for (const auto& [name, m] : whole) {
    if (!name.ends_with(".ma") && !name.ends_with(".mc")) continue;
    ASSERT_GT(mx::max(mx::abs(m)).item<float>(), 0) << name;
    EXPECT_LT(oracle::distance_between(small.at(name), mx::multiply(m, mx::array(little))), 5e-3) << name;
  }
}

// What no multiple of the loss brings into range ends with a sentence: masks of 2^40 make gradients of some 2^33.
TEST_P(DwqTest, GradientsOutOfRangeAreAnError) {
  batches.erase(batches.begin() + 1, batches.end());
  batches[0].mask = mx::multiply(batches[0].mask, mx::array(std::ldexp(1.0f, 40)));
  if (GetParam() != mx::float16) {
    EXPECT_EQ(train(options).progress.step, 1);
    return;
  }
  try {
    train(options);
    ADD_FAILURE() << "trained";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("make the model float32 first"), std::string::npos) << e.what();
  }
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
  EXPECT_EQ(diagnose({1, 2, 3}, 2, 1), "");  // too few to tell
  // No better than the start: always said, with the likeliest reason and what to try.
  for (const auto& [steps, reason, remedy] : std::vector<std::tuple<std::vector<double>, const char*, const char*>>{
           {{1, 2, 3}, "3 steps are too few", "more rows (--num-samples)"},
           {{1}, "1 step is too few", "smaller --batch-size"},
           {losses([](int i) { return 1 + 0.01 * i; }), "learning rate is probably too high", "smaller --learning-rate"},
           {falling, "probably too few of them", "more --num-samples"}}) {
    const auto said = diagnose(steps, 1, 1);
    EXPECT_TRUE(has(said, "Training did not lower the KL on the held-out rows") && has(said, reason) && has(said, remedy)) << said;
  }
  EXPECT_TRUE(has(diagnose(losses([](int i) { return 1 + 0.01 * i; }), 1, 0.9), "oscillates"));
  EXPECT_TRUE(has(diagnose(losses([](int i) { return i % 2 ? 2.0 : 0.1; }), 1, 0.9), "oscillates"));
  EXPECT_TRUE(has(diagnose(losses([](int) { return 1.0; }), 1, 0.99), "barely moved"));
}

}  // namespace
}  // namespace lquant::quantize
