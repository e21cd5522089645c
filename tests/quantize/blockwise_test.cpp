#include "quantize/blockwise.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "oracle/quantize_tiny.h"

namespace lquant::quantize {
namespace {

/// Block 0 of a random model at 3 bits, fed with random states.
class BlockwiseTest : public ::testing::Test {
 protected:
  BlockwiseTest() {
    options.epochs = 4;
    for (int b = 0; b < 6; ++b) rows.push_back(random_rows(b, 4));
  }

  BlockRows random_rows(int seed, int count) const {
    auto x = mx::random::normal({count, 12, 64}, mx::float32, 0, 1, mx::random::key(seed));
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
    return mx::sum(mx::square(mx::subtract(model::block(pair.spec, 0, packed, pair.formats, on.inputs), on.targets))).item<float>();
  }

  static bool all_same(const model::Tensors& a, const model::Tensors& b) {
    for (const auto& [name, tensor] : a)
      if (!oracle::same(tensor, b.at(name))) return false;
    return a.size() == b.size();
  }

  oracle::TinyPair pair{3};
  std::vector<BlockRows> rows;
  BlockwiseOptions options;
};

TEST_F(BlockwiseTest, LowersTheErrorOnRowsItHasNotSeen) {
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

TEST_F(BlockwiseTest, NeverWorseThanTheStart) {
  options.scale_rate = 0.5f, options.code_rate = 1;  // throws everything about
  BlockwiseResult result;
  EXPECT_TRUE(all_same(trained(weighted_squares(std::nullopt), &result), pair.packed));
  EXPECT_EQ(result.loss, 1);
  EXPECT_EQ(result.best_step, 0);
}

TEST_F(BlockwiseTest, WithoutRowsToJudgeByNothingChanges) {
  rows = {random_rows(0, 1)};
  EXPECT_TRUE(all_same(trained(weighted_squares(std::nullopt)), pair.packed));
}

TEST_F(BlockwiseTest, StoppedItLeavesTheStart) {
  auto packed = pair.packed;
  int steps = 0;
  train_block(pair.spec, 0, packed, pair.formats, pair.teacher, rows, weighted_squares(std::nullopt), options, [&] { return ++steps == 3; });
  EXPECT_EQ(steps, 3);
  EXPECT_TRUE(all_same(packed, pair.packed));
}

TEST_F(BlockwiseTest, TheSameInputsGiveTheSameBytes) {
  const auto loss = weighted_squares(std::nullopt);
  EXPECT_TRUE(all_same(trained(loss), trained(loss)));
}

TEST_F(BlockwiseTest, PaddingDoesNotCount) {
  auto part = random_rows(7, 2);
  const auto loss = weighted_squares(std::nullopt);
  const auto whole = mx::array({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {1, 12}, mx::int32);
  const auto cut = mx::array({0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1}, {1, 12}, mx::int32);
  part.segments = mx::concatenate({whole, cut}, 0);
  const auto wrong = mx::add(part.targets, mx::array(1.0f));
  // 21 of the 24 tokens, each wrong by 1 in all of its 64 channels; sums of small whole numbers have no rounding but that of target + 1 (2^-23 · 8
  // each).
  EXPECT_NEAR(loss(wrong, part).item<float>(), 21 * 64, 0.01);
}

TEST_F(BlockwiseTest, ErrorsAreWeighedByTheMatrix) {
  const auto g = mx::random::normal({200, 64}, mx::float32, 0, 1, mx::random::key(3));
  const auto fisher = mx::matmul(mx::transpose(g), g);
  const auto part = random_rows(5, 2);
  const auto delta = mx::random::normal(part.targets.shape(), mx::float32, 0, 1, mx::random::key(4));
  const auto mean = mx::mean(mx::diagonal(fisher));
  const auto weights = mx::add(mx::divide(fisher, mean), mx::multiply(mx::array(0.1f), mx::eye(64)));
  const auto expected = mx::sum(mx::multiply(mx::matmul(delta, weights), delta)).item<float>();
  const auto found = weighted_squares(fisher)(mx::add(part.targets, delta), part).item<float>();
  // Both sum 24 · 64 terms of products of 64 in f32: relative roundings of 2^-24 · 64 each, and delta is taken as a difference of numbers below 10.
  EXPECT_NEAR(found, expected, 1e-4 * expected);
}

TEST_F(BlockwiseTest, AMatrixThatIsNoneIsLeftOut) {
  const auto part = random_rows(5, 2);
  const auto outputs = mx::add(part.targets, mx::array(0.5f));
  const auto plain = weighted_squares(std::nullopt)(outputs, part).item<float>();
  EXPECT_EQ(weighted_squares(mx::zeros({64, 64}))(outputs, part).item<float>(), plain);
  EXPECT_EQ(weighted_squares(mx::full({64, 64}, std::nanf("")))(outputs, part).item<float>(), plain);
}

TEST_F(BlockwiseTest, GradientsAreThoseOfTheSquaresWrittenOut) {
  std::vector<std::string> names;
  model::Formats own;
  for (const auto* linear : pair.spec.blocks[0].linears()) own.insert({linear->path, pair.formats.at(linear->path)}), names.push_back(linear->path);
  const Student student(pair.spec, own, pair.packed, pair.teacher, true);
  const auto part = random_rows(9, 3);
  const auto [loss, gradients] = block_gradients(pair.spec, 0, student, student.weights(), part, weighted_squares(std::nullopt));
  EXPECT_NEAR(loss, error(pair.packed, part), 1e-4 * loss);
  ASSERT_EQ(student.paths(), names);
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

TEST_F(BlockwiseTest, TheLastBlockLearnsTheDivergenceItself) {
  const auto loss = divergence(pair.spec, pair.teacher, mx::float32);
  const auto part = random_rows(11, 2);
  EXPECT_NEAR(loss(part.targets, part).item<float>(), 0, 1e-3);  // 24 tokens, each a sum of 48 terms rounded at 2^-24 of their size
  const auto other = mx::add(part.targets, mx::random::normal(part.targets.shape(), mx::float32, 0, 1, mx::random::key(2)));
  const auto log_p = [&](const mx::array& x) {
    const auto z = model::logits(model::head(pair.spec, pair.teacher, {}, mx::float32), model::final_norm(pair.spec, pair.teacher, x));
    return mx::subtract(z, mx::logsumexp(z, -1, true));
  };
  const auto t = log_p(part.targets), s = log_p(other);
  const auto expected = mx::sum(mx::multiply(mx::exp(t), mx::subtract(t, s))).item<float>();
  EXPECT_NEAR(loss(other, part).item<float>(), expected, 1e-4 * expected);
  BlockwiseResult result;
  trained(loss, &result);
  EXPECT_LT(result.loss, 1);
}

}  // namespace
}  // namespace lquant::quantize
