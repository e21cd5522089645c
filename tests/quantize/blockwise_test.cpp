#include "quantize/blockwise.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>

#include "oracle/quantize_tiny.h"

namespace lquant::quantize {
namespace {

/// Block 0 of a random model of each dtype at 3 bits, fed with random states.
class BlockwiseTest : public ::testing::TestWithParam<mx::Dtype> {
 protected:
  BlockwiseTest() {
    options.epochs = 4;
    for (int b = 0; b < 6; ++b) rows.push_back(random_rows(b, 4));
  }

  BlockRows random_rows(int seed, int count) const {
    auto x = mx::astype(mx::random::normal({count, 12, 64}, mx::float32, 0, 1, mx::random::key(seed)), pair.dtype);
    auto y = model::block(pair.spec, 0, pair.teacher, {}, x);
    mx::eval(x, y);
    return {x, y, std::nullopt};
  }

  model::Tensors trained(const OutputLoss& loss, BlockwiseResult* result = nullptr) const {
    auto packed = pair.packed;
    const auto found = train_block(pair.spec, 0, packed, pair.formats, pair.teacher, rows, loss, options);
    if (result) *result = found;
    return packed;
  }

  double error(const model::Tensors& packed, const BlockRows& on) const {
    return mx::sum(mx::square(mx::subtract(f32(model::block(pair.spec, 0, packed, pair.formats, on.inputs)), f32(on.targets)))).item<float>();
  }

  static bool all_same(const model::Tensors& a, const model::Tensors& b) {
    for (const auto& [name, tensor] : a)
      if (!oracle::same(tensor, b.at(name))) return false;
    return a.size() == b.size();
  }

  static mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }
  /// 0 for f32, whose rounding the tests name themselves.
  double unit() const { return pair.dtype == mx::float32 ? 0 : oracle::unit_of(pair.dtype); }

  oracle::TinyPair pair{3, 1, GetParam()};
  std::vector<BlockRows> rows;
  BlockwiseOptions options;
};

INSTANTIATE_TEST_SUITE_P(Dtypes, BlockwiseTest, ::testing::ValuesIn(oracle::kDtypes), [](const auto& info) { return oracle::name_of(info.param); });

TEST_P(BlockwiseTest, LowersTheErrorOnRowsItHasNotSeen) {
  BlockwiseResult result;
  const auto packed = trained(weighted_squares(std::nullopt), &result);
  EXPECT_LT(result.loss, 0.95);
  EXPECT_GT(result.best_step, 0);
  const auto fresh = random_rows(1000, 16);
  EXPECT_LT(error(packed, fresh), 0.95 * error(pair.packed, fresh));
  for (const auto& [name, tensor] : pair.packed) {
    EXPECT_EQ(packed.at(name).shape(), tensor.shape()) << name;
    EXPECT_EQ(packed.at(name).dtype(), tensor.dtype()) << name;
    if (!name.starts_with("model.layers.0.")) EXPECT_TRUE(oracle::same(packed.at(name), tensor)) << name;
  }
}

TEST_P(BlockwiseTest, NeverWorseThanTheStart) {
  options.scale_rate = 0.5f, options.code_rate = 1;  // throws everything about
  BlockwiseResult result;
  EXPECT_TRUE(all_same(trained(weighted_squares(std::nullopt), &result), pair.packed));
  EXPECT_EQ(result.loss, 1);
  EXPECT_EQ(result.best_step, 0);
}

TEST_P(BlockwiseTest, WithoutRowsToJudgeByNothingChanges) {
  rows = {random_rows(0, 1)};
  EXPECT_TRUE(all_same(trained(weighted_squares(std::nullopt)), pair.packed));
}

TEST_P(BlockwiseTest, StoppedItLeavesTheStart) {
  auto packed = pair.packed;
  int steps = 0;
  train_block(pair.spec, 0, packed, pair.formats, pair.teacher, rows, weighted_squares(std::nullopt), options, [&] { return ++steps == 3; });
  EXPECT_EQ(steps, 3);
  EXPECT_TRUE(all_same(packed, pair.packed));
}

TEST_P(BlockwiseTest, TheSameInputsGiveTheSameBytes) {
  const auto loss = weighted_squares(std::nullopt);
  EXPECT_TRUE(all_same(trained(loss), trained(loss)));
}

TEST_P(BlockwiseTest, PaddingDoesNotCount) {
  auto part = random_rows(7, 2);
  const auto loss = weighted_squares(std::nullopt);
  const auto whole = mx::array({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {1, 12}, mx::int32);
  const auto cut = mx::array({0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1}, {1, 12}, mx::int32);
  part.segments = mx::concatenate({whole, cut}, 0);
  const auto wrong = mx::add(part.targets, mx::array(1.0f, pair.dtype));
  // 21 of the 24 tokens, each wrong by 1 in all of its 64 channels; sums of small whole numbers have no rounding but that of target + 1 (2^-23 · 8
  // each; in 16 bits a unit of 8, which moves the square by twice that).
  EXPECT_NEAR(loss(wrong, part).item<float>(), 21 * 64, 0.01 + 21 * 64 * 2 * 8 * unit());
}

TEST_P(BlockwiseTest, ErrorsAreWeighedByTheMatrix) {
  const auto g = mx::random::normal({200, 64}, mx::float32, 0, 1, mx::random::key(3));
  const auto fisher = mx::matmul(mx::transpose(g), g);
  const auto part = random_rows(5, 2);
  const auto outputs = mx::add(part.targets, mx::astype(mx::random::normal(part.targets.shape(), mx::float32, 0, 1, mx::random::key(4)), pair.dtype));
  const auto delta = mx::subtract(f32(outputs), f32(part.targets));
  const auto mean = mx::mean(mx::diagonal(fisher));
  const auto weights = mx::add(mx::divide(fisher, mean), mx::multiply(mx::array(0.1f), mx::eye(64)));
  const auto expected = mx::sum(mx::multiply(mx::matmul(delta, weights), delta)).item<float>();
  const auto found = weighted_squares(fisher)(outputs, part).item<float>();
  // Both sum 24 · 64 terms of products of 64 in f32: relative roundings of 2^-24 · 64 each, and delta is taken as a difference of numbers below 10.
  // In bf16 delta, the factor and their product are rounded, and the square doubles that; f16, whose range squares may leave, is multiplied in f32.
  EXPECT_NEAR(found, expected, (1e-4 + (pair.dtype == mx::bfloat16 ? 6 * unit() : 0)) * expected);
}

TEST_P(BlockwiseTest, AMatrixThatIsNoneIsLeftOut) {
  const auto part = random_rows(5, 2);
  const auto outputs = mx::add(part.targets, mx::array(0.5f, pair.dtype));
  const auto plain = weighted_squares(std::nullopt)(outputs, part).item<float>();
  EXPECT_EQ(weighted_squares(mx::zeros({64, 64}))(outputs, part).item<float>(), plain);
  EXPECT_EQ(weighted_squares(mx::full({64, 64}, std::nanf("")))(outputs, part).item<float>(), plain);
}

TEST_P(BlockwiseTest, GradientsAreThoseOfTheSquaresWrittenOut) {
  std::vector<std::string> names;
  model::Formats own;
  for (const auto* linear : pair.spec.blocks[0].linears()) own.insert({linear->path, pair.formats.at(linear->path)}), names.push_back(linear->path);
  const Student student(pair.spec, own, pair.packed, pair.teacher, true);
  const auto stored = random_rows(9, 3);
  const BlockRows part{f32(stored.inputs), f32(stored.targets), std::nullopt};
  std::vector<mx::array> weights;
  for (const auto& weight : student.weights()) weights.push_back(f32(weight));
  const auto [loss, gradients] = block_gradients(pair.spec, 0, student, weights, part, weighted_squares(std::nullopt));
  ASSERT_EQ(student.paths(), names);
  if (pair.dtype != mx::float32) {
    // In 16 bits the outputs' own rounding stands beside the error that the gradient starts from, of a fifth of their size or more.
    const auto [half_loss, half_gradients] = block_gradients(pair.spec, 0, student, student.weights(), stored, weighted_squares(std::nullopt));
    const double share = std::sqrt(mx::sum(mx::square(part.targets)).item<float>() / loss), bound = share * oracle::rounding_of(1, pair.dtype);
    EXPECT_NEAR(half_loss, loss, 2 * bound * loss);
    for (std::size_t i = 0; i < names.size(); ++i) {
      EXPECT_EQ(half_gradients[i].dtype(), mx::float32) << names[i];
      EXPECT_LT(oracle::distance_between(half_gradients[i], gradients[i]), bound) << names[i] << " share " << share;
    }
    return;
  }
  EXPECT_NEAR(loss, error(pair.packed, part), 1e-4 * loss);
  // Central differences along a random direction of each weight. The loss, of order 1e2, is rounded at 1e-5 or so; divided by 2h that is 5e-3, beside
  // slopes of order 10; the third derivative adds h² of that.
  const float h = 1e-3f;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto direction = mx::random::normal(gradients[i].shape(), mx::float32, 0, 1, mx::random::key(50 + i));
    const auto at = [&](float by) {
      auto tensors = student.with(student.weights());
      auto& weight = tensors.at(names[i] + ".weight");
      weight = mx::add(weight, mx::multiply(mx::array(by), direction));
      return static_cast<double>(mx::sum(mx::square(mx::subtract(model::block(pair.spec, 0, tensors, {}, part.inputs), part.targets))).item<float>());
    };
    const double expected = (at(h) - at(-h)) / (2 * h);
    const double found = mx::sum(mx::multiply(gradients[i], direction)).item<float>();
    EXPECT_NEAR(found, expected, 0.01 * std::abs(expected) + 0.2) << names[i];
  }
}

TEST_P(BlockwiseTest, TheLastBlockLearnsTheDivergenceItself) {
  const auto loss = divergence(pair.spec, pair.teacher, pair.dtype);
  const auto part = random_rows(11, 2);
  EXPECT_NEAR(loss(part.targets, part).item<float>(), 0, 1e-3);  // 24 tokens, each a sum of 48 terms rounded at 2^-24 of their size
  const auto other = mx::add(part.targets, mx::astype(mx::random::normal(part.targets.shape(), mx::float32, 0, 1, mx::random::key(2)), pair.dtype));
  const auto log_p = [&](const mx::array& x) {
    const auto z = f32(model::logits(model::head(pair.spec, pair.teacher, {}, pair.dtype), model::final_norm(pair.spec, pair.teacher, x)));
    return mx::subtract(z, mx::logsumexp(z, -1, true));
  };
  const auto t = log_p(part.targets), s = log_p(other);
  const auto expected = mx::sum(mx::multiply(mx::exp(t), mx::subtract(t, s))).item<float>();
  // In 16 bits the logits, below 10, are rounded here, and in the loss they may not be: KL moves by twice that at most, of 24 tokens.
  EXPECT_NEAR(loss(other, part).item<float>(), expected, 1e-4 * expected + 24 * 2 * 10 * unit());
  BlockwiseResult result;
  trained(loss, &result);
  EXPECT_LT(result.loss, 1);
}

}  // namespace
}  // namespace lquant::quantize
