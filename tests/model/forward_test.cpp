#include "model/forward.h"
#include "model/block.h"
#include "model/ops/attention.h"
#include "model/ops/experts.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "oracle/model_random.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

float largest_difference(const mx::array& a, const mx::array& b) { return mx::max(mx::abs(mx::subtract(a, b))).item<float>(); }
float largest(const mx::array& a) { return mx::max(mx::abs(a)).item<float>(); }

// The same f32 sums in another order: relative errors of some 1e-6 after two blocks; whatever is wrong shows far above 1e-4.
constexpr float kOrder = 1e-4f;

mx::array slice_positions(const mx::array& x, int from, int to) {
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start[1] = from;
  stop[1] = to;
  return mx::slice(x, start, stop);
}

class ForwardTest : public testing::TestWithParam<std::string> {
 protected:
  ModelSpec spec = spec_from_config(oracle::tiny_config(GetParam()));
  Tensors tensors = oracle::random_tensors(spec, 11);
  mx::array ids = mx::random::randint(0, spec.vocab, {3, 14}, mx::int32, mx::random::key(1));
};

TEST_P(ForwardTest, CachedDecodingEqualsTheWhole) {
  const auto whole = forward(spec, tensors, {}, ids, mx::float32);
  Cache cache(static_cast<int>(spec.visits().size()));
  Context context;
  context.cache = &cache;
  std::vector<mx::array> parts;
  for (const auto& [from, to] : {std::pair{0, 6}, {6, 7}, {7, 8}, {8, 13}, {13, 14}}) {
    parts.push_back(forward(spec, tensors, {}, slice_positions(ids, from, to), mx::float32, context));
    mx::eval(parts.back());
  }
  EXPECT_EQ(cache.length(), 14);
  EXPECT_LT(largest_difference(whole, mx::concatenate(parts, 1)), kOrder * largest(whole));
}

TEST_P(ForwardTest, PackedSegmentsEqualSeparateSequences) {
  const auto first = slice_positions(ids, 0, 5), second = slice_positions(ids, 5, 14);
  std::vector<std::int32_t> numbers;
  for (int b = 0; b < 3; ++b)
    for (int t = 0; t < 14; ++t) numbers.push_back(t < 5 ? 0 : 1);
  Context context;
  context.segments = mx::array(numbers.data(), {3, 14}, mx::int32);
  const auto packed = forward(spec, tensors, {}, ids, mx::float32, context);
  const auto apart = mx::concatenate({forward(spec, tensors, {}, first, mx::float32), forward(spec, tensors, {}, second, mx::float32)}, 1);
  EXPECT_LT(largest_difference(packed, apart), kOrder * largest(apart));
  // And the segments do matter: without them the second text would see the first.
  EXPECT_GT(largest_difference(forward(spec, tensors, {}, ids, mx::float32), apart), 0.01f * largest(apart));
}

// Two texts in a row, the first of 4 tokens with endings of 3 and 2, the second of 3 with one of 2: each ending continues its text.
TEST_P(ForwardTest, BranchesEqualWholeSequences) {
  const auto row = mx::slice(ids, {0, 0}, {1, 14});
  const std::vector<std::int32_t> numbers{0, 0, 0, 0, 1, 1, 1, 2, 2, 256, 256, 256, 257, 257}, places{0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2, 3, 4};
  Context context;
  context.segments = mx::array(numbers.data(), {1, 14}, mx::int32);
  context.branches = Branches{mx::array(places.data(), {1, 14}, mx::int32), 7};
  int window = 14;
  for (const auto& block : spec.blocks)
    for (const auto& step : block.steps)
      for (const auto& branch : step.branches) {
        const auto traits = branch.op->traits();
        if (traits.window > 0) window = std::min(window, traits.window);
        if (!traits.branches) window = 0;
      }
  if (window < 7) {  // a branch would lose sight of its trunk too early, or cannot go on from it
    EXPECT_THROW(forward(spec, tensors, {}, row, mx::float32, context), std::invalid_argument);
    return;
  }
  const auto packed = forward(spec, tensors, {}, row, mx::float32, context);
  const auto at = [&](const mx::array& x, std::vector<std::int32_t> which) {
    return mx::take(x, mx::array(which.data(), {static_cast<int>(which.size())}, mx::int32), 1);
  };
  for (const auto& which : std::vector<std::vector<std::int32_t>>{{0, 1, 2, 3, 4, 5, 6}, {0, 1, 2, 3, 7, 8}, {9, 10, 11, 12, 13}}) {
    const auto whole = forward(spec, tensors, {}, at(row, which), mx::float32);
    EXPECT_LT(largest_difference(at(packed, which), whole), kOrder * largest(whole));
  }
}

// Scoring takes the tokens that it asks for out of their rows there, and what comes behind knows nothing of the others.
TEST_P(ForwardTest, TokensGoOnAloneFromWhereNoneLooksAtAnother) {
  const auto at = mx::array({13, 2, 7}, mx::int32);
  auto x = embed(spec, tensors, {}, ids, mx::float32);
  for (const auto& visit : spec.visits()) {
    const auto& block = spec.blocks[visit.block];
    const int mixed = mixed_by(block), count = stages(block);
    Halted halted{x};
    for (int stage = 0; stage <= std::min(mixed, count - 1); ++stage) halted = advance(spec, visit, stage, tensors, {}, halted);
    const bool narrowed = narrow(halted, at);
    for (int stage = mixed + 1; stage < count; ++stage) halted = advance(spec, visit, stage, tensors, {}, halted);
    x = model::block(spec, visit, tensors, {}, x);
    if (!narrowed) continue;
    const auto alone = leave(spec, visit, tensors, {}, halted), together = mx::take(x, at, 1);
    EXPECT_LT(largest_difference(alone, together), kOrder * largest(together)) << "block " << visit.block;
  }
}

TEST_P(ForwardTest, ObserverSeesEveryLinearOnceInEachPass) {
  std::map<std::string, int> seen;
  std::map<std::string, const LinearSpec*> linears;
  for (const auto* linear : spec.linears()) linears[linear->path] = linear;
  const Observer observer = [&](const std::string& path, const mx::array& input, const ExpertRows* experts) {
    ++seen[path];
    ASSERT_TRUE(linears.count(path)) << path;
    const auto& linear = *linears[path];
    EXPECT_EQ(input.shape(-1), linear.in) << path;
    EXPECT_EQ(experts != nullptr, linear.experts > 0 && linear.stack != LinearSpec::Stack::shared) << path;
    if (!experts) {
      EXPECT_EQ(input.shape(), (mx::Shape{3, 14, linear.in})) << path;
      return;
    }
    EXPECT_EQ(input.shape(0), 3 * 14 * linear.top_k);
    EXPECT_EQ(experts->offsets.shape(), mx::Shape{linear.experts + 1});
    const auto* mixture = find_op<Experts>(spec.blocks[linear.block]);
    const bool some_have_none = linear.routed() && mixture->identities > 0;
    const int rows = mx::max(experts->offsets).item<int>();
    EXPECT_TRUE(some_have_none ? rows < input.shape(0) : rows == input.shape(0)) << path;
    // Each token goes to top_k matrices, and is copied to each of them.
    EXPECT_TRUE(mx::array_equal(mx::sort(experts->tokens), mx::repeat(mx::arange(3 * 14, mx::int32), linear.top_k)).item<bool>()) << path;
  };
  Context context;
  context.observer = &observer;
  mx::eval(forward(spec, tensors, {}, ids, mx::float32, context));
  for (const auto& [path, linear] : linears)
    EXPECT_EQ(seen[path], linear->role == Role::embed ? 0 : linear->block < 0 ? linear->reads : spec.passes * linear->reads) << path;
}

TEST_P(ForwardTest, GradientsReachScalesAndBiases) {
  const auto spec = oracle::with_all_experts(oracle::without_steps(this->spec));
  auto packed = tensors;
  Formats formats;
  std::vector<std::string> names;
  for (const auto* linear : spec.linears()) {
    if (linear->reads == 0 || linear->only_chooses) continue;
    oracle::pack(packed, formats, linear->path, {codec::Mode::affine, 4, 32});
    names.push_back(linear->path + ".scales");
    names.push_back(linear->path + ".biases");
  }
  std::vector<mx::array> values, directions;
  std::vector<int> all;
  for (const auto& name : names) {
    const auto& value = packed.at(name);
    all.push_back(static_cast<int>(values.size()));
    directions.push_back(mx::multiply(mx::abs(value), mx::random::normal(value.shape(), mx::float32, 0, 1, mx::random::key(values.size()))));
    values.push_back(value);
  }
  const auto weights = mx::random::normal({3, 14, spec.vocab}, mx::float32, 0, 1, mx::random::key(99));
  const auto loss = [&](const std::vector<mx::array>& given) {
    auto traced = packed;
    for (std::size_t i = 0; i < names.size(); ++i) traced.insert_or_assign(names[i], given[i]);
    return mx::sum(mx::multiply(weights, forward(spec, traced, formats, ids, mx::float32)));
  };
  const auto gradients = mx::value_and_grad(loss, all)(values).second;
  double along = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double part = mx::sum(mx::multiply(gradients[i], directions[i])).item<float>();
    EXPECT_GT(mx::max(mx::abs(gradients[i])).item<float>(), 0) << names[i];
    along += part;
  }
  const auto shifted = [&](float step) {
    auto moved = values;
    for (std::size_t i = 0; i < moved.size(); ++i) moved[i] = mx::add(moved[i], mx::multiply(mx::array(step), directions[i]));
    return double(loss(moved).item<float>());
  };
  const auto slope = [&](float step) { return (shifted(step) - shifted(-step)) / (2.0 * step); };
  // A central difference errs by c·step², so that of the half step by a third of how much the two differ. Rounding: a sum of 2016
  // terms of about 1, each with an error of some 1e-6, over twice the step.
  const float step = 1e-3f;
  const double fine = slope(step), coarse = slope(2 * step);
  const double rounding = std::sqrt(3.0 * 14 * spec.vocab) * largest(forward(spec, packed, formats, ids, mx::float32)) * 1e-6 / step;
  EXPECT_NEAR(along, fine, std::abs(coarse - fine) + rounding);
  EXPECT_GT(std::abs(along), 5 * rounding);  // else the comparison would say nothing
}

TEST(Forward, ValuesInStepsHaveTheGradientOfThoseThatAreNot) {
  const auto stepped = spec_from_config(oracle::tiny_config("afm7")), smooth = oracle::without_steps(stepped);
  auto tensors = oracle::random_tensors(stepped, 11);
  const auto ids = mx::random::randint(0, stepped.vocab, {2, 9}, mx::int32, mx::random::key(1));
  const std::string attention = "model.layers.1.self_attn.", linear = attention + "qkv_proj.weight";  // two later layers read its keys and values
  const auto gradient = [&](const ModelSpec& spec) {
    const auto loss = [&](const mx::array& weight) {
      auto own = tensors;
      own.insert_or_assign(linear, weight);
      return mx::sum(mx::square(forward(spec, own, {}, ids, mx::float32)));
    };
    const auto all = mx::grad(loss)(tensors.at(linear));
    return mx::slice(all, {64, 0}, {128, 64});  // rows of keys and values
  };
  for (auto& [name, value] : tensors)
    if (name.find(".quant_") != std::string::npos) value = mx::array(0.03f);
  EXPECT_LT(oracle::distance_between(gradient(stepped), gradient(smooth)), 0.1);
  // Where all are out of range, at −128 or 127 steps, nothing flows back.
  for (const char* name : {"quant_key_scale", "quant_value_scale"}) tensors.insert_or_assign(attention + name, mx::array(1e-9f));
  EXPECT_EQ(largest(gradient(stepped)), 0);
}

TEST_P(ForwardTest, DensifiedEqualsPacked) {
  Formats formats;
  for (const auto* linear : spec.linears()) oracle::pack(tensors, formats, linear->path, {codec::Mode::affine, 4, 32});
  const auto packed = forward(spec, tensors, formats, ids, mx::float32);
  densify(tensors, formats, mx::float32);
  EXPECT_TRUE(formats.empty());
  EXPECT_EQ(tensors.count(spec.embedding.path + ".scales"), 0u);
  // Dequantization is exact; only a product over the same numbers follows.
  EXPECT_LE(largest_difference(packed, forward(spec, tensors, formats, ids, mx::float32)), 1e-6f * largest(packed));
}

INSTANTIATE_TEST_SUITE_P(Families, ForwardTest, testing::ValuesIn(known_model_types()), [](const auto& info) { return oracle::name_of(info.param); });

TEST(Forward, DensifyLeavesOtherBlocksFormatsAlone) {
  const auto spec = spec_from_config(oracle::tiny_config("llama"));
  auto tensors = oracle::random_tensors(spec, 1);
  Formats formats = {{"model.layers.7.mlp.up_proj", {}}};
  densify(tensors, formats, mx::float32);
  EXPECT_EQ(formats.size(), 1u);
}

TEST(Forward, CacheGrowsBeyondItsFirstBuffer) {
  const auto spec = spec_from_config(oracle::tiny_config("llama"));
  const auto tensors = oracle::random_tensors(spec, 1);
  const auto ids = mx::random::randint(0, spec.vocab, {1, 300}, mx::int32, mx::random::key(1));
  Cache cache(2);
  Context context;
  context.cache = &cache;
  mx::eval(forward(spec, tensors, {}, slice_positions(ids, 0, 250), mx::float32, context));
  const auto tail = forward(spec, tensors, {}, slice_positions(ids, 250, 300), mx::float32, context);
  const auto whole = forward(spec, tensors, {}, ids, mx::float32);
  EXPECT_LT(largest_difference(tail, slice_positions(whole, 250, 300)), kOrder * largest(whole));
}

TEST(Forward, SegmentsAndCacheExcludeEachOther) {
  const auto spec = spec_from_config(oracle::tiny_config("llama"));
  const auto tensors = oracle::random_tensors(spec, 1);
  Cache cache(2);
  Context context;
  context.cache = &cache;
  context.segments = mx::zeros({1, 3}, mx::int32);
  EXPECT_THROW(forward(spec, tensors, {}, mx::zeros({1, 3}, mx::int32), mx::float32, context), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::model
