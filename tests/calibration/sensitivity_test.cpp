#include "calibration/sensitivity.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "oracle/model_random.h"

namespace lquant::calibration {
namespace {

/// The model's blocks run once, or twice with keys and values carried beside the residual.
class SensitivityTest : public ::testing::TestWithParam<std::pair<const char*, mx::Dtype>> {};

INSTANTIATE_TEST_SUITE_P(Models, SensitivityTest, ::testing::ValuesIn([] {
                           std::vector<std::pair<const char*, mx::Dtype>> all;
                           for (const char* type : {"llama", "iquestloopcoder"})
                             for (const auto dtype : oracle::kDtypes) all.push_back({type, dtype});
                           return all;
                         }()),
                         [](const auto& info) { return std::string(info.param.first) + "_" + oracle::name_of(info.param.second); });

/// The same by MLX's own gradient, in f32, of the whole model with an addend behind each run of a block.
TEST_P(SensitivityTest, IsTheMeanOuterProductOfTheGradients) {
  const auto [type, dtype] = GetParam();
  const auto config = oracle::tiny_config(type);
  const auto spec = model::spec_from_config(config);
  const auto stored = model::cast(oracle::random_tensors(spec, 3), dtype), tensors = model::cast(stored, mx::float32);
  const oracle::Folder folder(config, stored);
  const auto model = model::Model::open(checkpoint::Checkpoint::open(folder.path()));
  const auto ids = mx::random::randint(0, 48, {3, 10}, mx::int32, mx::random::key(1));
  // The second row holds two texts, the third is padded.
  const auto segments = mx::array({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1}, {3, 10}, mx::int32);
  const auto counts = mx::array({1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0}, {3, 10}, mx::int32);
  const auto visits = spec.visits();
  const int blocks = static_cast<int>(spec.blocks.size()), runs = static_cast<int>(visits.size());
  model::Context context;
  context.segments = segments;
  const auto loss = [&](const std::vector<mx::array>& addends) {
    auto x = model::embed(spec, tensors, {}, ids, mx::float32);
    for (int i = 0; i < runs; ++i) x = mx::add(model::block(spec, visits[i], tensors, {}, x, context), addends[i]);
    const auto z = model::logits(model::head(spec, tensors, {}, mx::float32), model::final_norm(spec, tensors, x));
    const auto log_p = mx::subtract(z, mx::logsumexp(z, -1, true));
    const auto next = mx::expand_dims(mx::roll(ids, -1, 1), -1);
    return std::vector<mx::array>{
        mx::negative(mx::sum(mx::multiply(mx::squeeze(mx::take_along_axis(log_p, next, -1), -1), mx::astype(counts, mx::float32))))};
  };
  const std::vector<mx::array> none(runs, mx::zeros(model::embed(spec, tensors, {}, ids, mx::float32).shape(), mx::float32));
  const auto gradients = mx::vjp(loss, none, {mx::array(1.0f)}).second;
  int expected_block = blocks;
  block_sensitivities(model, {ids}, {segments}, [&](int block, const mx::array& fisher) {
    EXPECT_EQ(block, --expected_block);
    auto wanted = mx::zeros({spec.hidden, spec.hidden}, mx::float32);
    for (int i = 0; i < runs; ++i) {
      if (visits[i].block != block) continue;
      const auto g = mx::reshape(model::residual_of(spec, gradients[i]), {-1, spec.hidden});
      wanted = mx::add(wanted, mx::divide(mx::matmul(mx::transpose(g), g), mx::array(24.0f)));
    }
    ASSERT_EQ(fisher.shape(), wanted.shape());
    const float size = mx::max(mx::abs(wanted)).item<float>();
    EXPECT_GT(size, 0);
    if (model.compute_dtype() != mx::float32) {
      // 16 bits round about twice as many tensors on the way back as on the way there, and both factors of the outer products are off.
      EXPECT_LT(oracle::distance_between(fisher, wanted), 2 * oracle::rounding_of(3 * runs, model.compute_dtype())) << block;
      return;
    }
    // Products of 64 to 256 terms through three matrices a block, each rounded at 2^-24 of the largest: below 1e-3 of it in all.
    EXPECT_LT(mx::max(mx::abs(mx::subtract(fisher, wanted))).item<float>(), 1e-3f * size) << block;
  });
  EXPECT_EQ(expected_block, 0);
}

}  // namespace
}  // namespace lquant::calibration
