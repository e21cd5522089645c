// Rows of unequal length are padded. What stands there is no text: it may change no figure.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>

#include "base/temp.h"
#include "model/stream.h"
#include "oracle/model_random.h"
#include "pipeline/measured.h"
#include "pipeline/moments.h"
#include "pipeline/rows.h"
#include "pipeline/start.h"

namespace lquant::pipeline {
namespace {

constexpr int kRows = 2, kLength = 12;

/// Two rows of text, each followed by so many padded positions with this token.
calibration::Batch batch_of(int padding, int token) {
  const auto text = mx::random::randint(0, 48, {kRows, kLength}, mx::int32, mx::random::key(1));
  const auto filled = [&](const mx::array& x, int value) { return mx::concatenate({x, mx::full({kRows, padding}, value, x.dtype())}, 1); };
  const auto next = mx::concatenate({mx::slice(text, {0, 1}, {kRows, kLength}), mx::zeros({kRows, 1}, mx::int32)}, 1);
  const auto mask = mx::concatenate({mx::ones({kRows, kLength - 1}), mx::zeros({kRows, 1})}, 1);
  calibration::Batch batch{filled(text, token), filled(mx::zeros({kRows, kLength}, mx::int32), -1), filled(mask, 0), filled(next, 0), filled(mask, 0)};
  batch.tokens = kRows * (kLength - 1);
  mx::eval(batch.ids, batch.segments, batch.mask, batch.targets, batch.next_mask);
  return batch;
}

class PaddingTest : public ::testing::TestWithParam<const char*> {
 protected:
  nlohmann::json config = oracle::tiny_config(GetParam());
  model::Tensors tensors = oracle::random_tensors(model::spec_from_config(config), 3);
  oracle::Folder folder{config, tensors};
  model::Model model = model::Model::open(checkpoint::Checkpoint::open(folder.path()));
  lquant::testing::TempFolder temp;
  run::NoEvents told;
  run::Stop stop;
  run::Context context{told, stop};

  run::RunFolder run_folder(const std::string& name) { return run::RunFolder(temp / name, {{"test", name}}, false, context); }

  Moments moments_of(const calibration::Batch& batch) {
    Moments moments;
    const auto counted = counted_tokens(batch);
    const model::BatchObserver observer = [&](std::size_t, const std::string& path, const mx::array& input, const model::ExpertRows* experts) {
      add_moment(moments, path, input, experts, counted);
    };
    model::StreamOptions options;
    options.segments = {batch.segments};
    options.observer = &observer;
    model::stream_blocks(model, {batch.ids}, options);
    return moments;
  }
};

TEST_P(PaddingTest, MomentsAreThoseOfTheTextAlone) {
  const auto alone = moments_of(batch_of(0, 0)), padded = moments_of(batch_of(7, 5));
  ASSERT_EQ(alone.size(), padded.size());
  // Inputs x and x + d, ‖d‖ ≤ ρ‖x‖ as two computations of the same states may differ: Σ |(x + d)² − x²| ≤ (2ρ + ρ²) Σ x². Each of the sums of n
  // squares is rounded n times.
  const double rho = oracle::rounding_of(static_cast<int>(model.spec().blocks.size()), mx::float32);
  const double bound = 2 * rho + rho * rho + 2 * kRows * kLength * 0x1p-24;
  for (const auto& [path, moment] : alone) {
    const double difference = mx::sum(mx::abs(mx::subtract(moment, padded.at(path)))).item<float>();
    EXPECT_LE(difference, bound * mx::sum(moment).item<float>()) << path;
  }
}

TEST_P(PaddingTest, TheStartDoesNotDependOnWhatStandsThere) {
  const auto plan = plan::uniform_plan(model.spec(), {codec::Mode::affine, 3, 32});
  model::Tensors found[2];
  for (int i = 0; i < 2; ++i) {
    auto run = run_folder("start" + std::to_string(i));
    found[i] = search_start(model, plan, {batch_of(7, 5 + 20 * i)}, run, context);
  }
  ASSERT_EQ(found[0].size(), found[1].size());
  for (const auto& [name, tensor] : found[0]) EXPECT_TRUE(mx::array_equal(tensor, found[1].at(name)).item<bool>()) << name;
}

TEST_P(PaddingTest, MeasuredSensitivitiesDoNotDependOnWhatStandsThere) {
  const codec::Format format{codec::Mode::affine, 3, 32};
  Sensitivities estimated;
  estimated.formats = {format};
  for (const auto* linear : model.spec().linears())
    if (!linear->fixed_format) estimated.kl[linear->path] = {0.01};
  std::map<std::string, std::vector<double>> found[2];
  for (int i = 0; i < 2; ++i) {
    Rows rows;
    rows.batches = {batch_of(7, 5 + 20 * i)};
    rows.counted = {counted_tokens(rows.batches[0])};
    auto run = run_folder("measured" + std::to_string(i));
    found[i] = measure_sensitivities(model, rows, estimated, format, run, context).kl;
  }
  EXPECT_EQ(found[0], found[1]);
  // Corrections have bounds, between which the figures themselves show.
  EXPECT_TRUE(std::any_of(found[0].begin(), found[0].end(), [](const auto& entry) { return entry.second[0] > 0.0026 && entry.second[0] < 0.039; }));
}

INSTANTIATE_TEST_SUITE_P(Families, PaddingTest, ::testing::Values("qwen3", "mistral", "qwen3_moe"), [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lquant::pipeline
