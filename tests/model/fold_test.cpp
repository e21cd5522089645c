#include "model/fold.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "model/forward.h"
#include "oracle/model_random.h"

namespace lquant::model {
namespace {

// A weight is rounded anew when it is divided or multiplied, and its scale once more: some 10 relative errors of 6e-8 a block, which the two
// blocks amplify at most a hundredfold. A norm's rounding to bf16, were it lost, is 2^-9 = 2e-3 for each weight.
constexpr double kFunction = 1e-4;

mx::Shape shape_of(const Edge& edge) { return edge.experts > 0 ? mx::Shape{edge.experts, edge.channels} : mx::Shape{edge.channels}; }

mx::array random_scales(const Edge& edge, std::uint64_t seed) {
  return mx::random::uniform(mx::array(0.5f), mx::array(2.0f), shape_of(edge), mx::float32, mx::random::key(seed));
}

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }

std::vector<float> values(const mx::array& x) {
  auto host = mx::contiguous(f32(x));
  host.eval();
  return {host.data<float>(), host.data<float>() + host.size()};
}

bool same_bytes(mx::array a, mx::array b) {
  a = mx::contiguous(a), b = mx::contiguous(b);
  mx::eval(a, b);
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.data<char>(), b.data<char>(), a.nbytes()) == 0;
}

/// The largest difference, relative to the largest logit.
double distance(const mx::array& before, const mx::array& after) {
  return mx::max(mx::abs(mx::subtract(before, after))).item<float>() / mx::max(mx::abs(before)).item<float>();
}

/// A random small model of one family.
struct Subject {
  explicit Subject(const std::string& family, std::optional<mx::Dtype> norms = std::nullopt)
      : spec(spec_from_config(oracle::tiny_config(family))), tensors(oracle::random_tensors(spec, 5)) {
    if (!norms) return;
    for (const auto& block : spec.blocks)
      for (const auto* norm : block.norms())
        for (int piece = 0; norm->weight && piece < std::max(1, norm->pieces); ++piece) {
          auto& weight = tensors.at(norm->weight_name(piece));
          weight = mx::astype(weight, *norms);
        }
  }
  mx::array logits(const Tensors& of) const {
    return forward(spec, of, {}, mx::random::randint(0, spec.vocab, {2, 9}, mx::int32, mx::random::key(3)), mx::float32);
  }
  ModelSpec spec;
  Tensors tensors;
};

class FoldTest : public testing::TestWithParam<std::string> {};

TEST_P(FoldTest, ChangesNothingInF32) {
  const Subject model(GetParam());
  auto folded = model.tensors;
  std::uint64_t seed = 100;
  for (const auto& edge : model.spec.edges()) {
    const auto wanted = random_scales(edge, seed++), used = fold(edge, wanted, folded, mx::float32);
    // A norm's scale is found again from its rounded weight: to two roundings (an offset's too, of weights that are no larger than 4).
    if (edge.norm) {
      EXPECT_TRUE(mx::allclose(used, wanted, 1e-5, 0).item<bool>()) << edge.producer;
    } else {
      EXPECT_TRUE(same_bytes(used, wanted)) << edge.producer;
    }
    // Both ends have changed: else equal logits would say nothing.
    for (auto path : edge.consumers)
      EXPECT_FALSE(mx::allclose(folded.at(path + ".weight"), model.tensors.at(path + ".weight"), 0.1, 0).item<bool>()) << path;
    EXPECT_FALSE(same_bytes(folded.at(edge.producer + ".weight"), model.tensors.at(edge.producer + ".weight"))) << edge.producer;
  }
  EXPECT_LT(distance(model.logits(model.tensors), model.logits(folded)), kFunction);
}

TEST_P(FoldTest, RoundedNormsLoseNothing) {
  for (const auto stored : {mx::bfloat16, mx::float16}) {
    const Subject model(GetParam(), stored);
    auto folded = model.tensors;
    std::uint64_t seed = 200;
    for (const auto& edge : model.spec.edges()) {
      const auto wanted = random_scales(edge, seed++), used = fold(edge, wanted, folded, stored);
      if (!edge.norm) continue;
      const auto& norm = folded.at(edge.producer + ".weight");
      EXPECT_EQ(norm.dtype(), stored);
      // What is in use is weight + offset, in the weight's dtype: as mlx_lm and kernels/norm.h have it.
      const auto in_use = [&](const mx::array& weight) { return values(mx::add(weight, mx::array(edge.norm->offset, stored))); };
      const auto before = in_use(model.tensors.at(edge.producer + ".weight")), after = in_use(norm), scales = values(used), asked = values(wanted);
      int rounded = 0;
      for (int c = 0; c < edge.channels; ++c) {
        // What is returned is what storage has made of the request: one quotient in f32.
        const double effective = double(before[c]) / after[c];
        EXPECT_NEAR(scales[c], effective, std::ldexp(effective, -24)) << edge.producer << ", channel " << c;
        // The new sum needs no rounding: whoever makes it in f32 gets the same.
        EXPECT_EQ(after[c], values(norm)[c] + edge.norm->offset);
        rounded += std::abs(scales[c] - asked[c]) > 1e-4 * asked[c];
      }
      // 2^-12 and more of rounding in bf16 (f16) meets a threshold of 1e-4: most channels of a norm must notice.
      EXPECT_GT(rounded, edge.channels / 8) << edge.producer;
    }
    EXPECT_LT(distance(model.logits(model.tensors), model.logits(folded)), kFunction);
  }
}

TEST_P(FoldTest, ReturnedScalesGiveTheSameNormsAgain) {
  for (const auto stored : {mx::bfloat16, mx::float16}) {
    const Subject model(GetParam(), stored);
    auto first = model.tensors, second = model.tensors;
    std::uint64_t seed = 300;
    for (const auto& edge : model.spec.edges()) {
      const auto used = fold(edge, random_scales(edge, seed++), first, stored);
      fold(edge, used, second, stored);
      if (edge.norm) EXPECT_TRUE(same_bytes(first.at(edge.producer + ".weight"), second.at(edge.producer + ".weight"))) << edge.producer;
    }
    EXPECT_LT(distance(model.logits(first), model.logits(second)), kFunction);
  }
}

TEST_P(FoldTest, ChannelsThatAreOffStayAsTheyAre) {
  Subject model(GetParam(), mx::bfloat16);
  constexpr int kOff = 3;
  for (const auto& edge : model.spec.edges()) {
    if (!edge.norm) continue;
    auto& weight = model.tensors.at(edge.producer + ".weight");
    weight = mx::slice_update(weight, mx::astype(mx::full({1}, -edge.norm->offset), mx::bfloat16), mx::Shape{kOff}, mx::Shape{kOff + 1});
  }
  auto folded = model.tensors;
  std::uint64_t seed = 400;
  for (const auto& edge : model.spec.edges()) {
    const auto used = fold(edge, random_scales(edge, seed++), folded, mx::bfloat16);
    EXPECT_TRUE(mx::all(mx::isfinite(used)).item<bool>());
    if (!edge.norm) continue;
    EXPECT_EQ(values(used)[kOff], 1) << edge.producer;
    EXPECT_EQ(values(folded.at(edge.producer + ".weight"))[kOff], -edge.norm->offset) << edge.producer;
  }
  for (const auto& [name, tensor] : folded) EXPECT_TRUE(mx::all(mx::isfinite(tensor)).item<bool>()) << name;
  EXPECT_LT(distance(model.logits(model.tensors), model.logits(folded)), kFunction);
}

/// Whether a tensor is one of a block's linears or norms.
bool in_block(const ModelSpec& spec, int block, const std::string& name) {
  const auto of = [&](const std::string& path) { return name.starts_with(path + "."); };
  for (const auto* linear : spec.blocks[block].linears())
    if (of(linear->path)) return true;
  for (const auto* norm : spec.blocks[block].norms())
    if (of(norm->path)) return true;
  return false;
}

TEST_P(FoldTest, OneBlockAtATime) {
  const Subject model(GetParam());
  const auto edges = model.spec.edges();
  Folds folds;
  // Every second edge, but at least one of block 1.
  const bool few = model.spec.edges_of(1).size() == 1;
  for (std::size_t i = 0; i < edges.size(); ++i)
    if (i % 2 == 0 || (few && edges[i].block == 1)) folds.insert({edges[i].producer, random_scales(edges[i], 500 + i)});
  auto whole = model.tensors, edgewise = model.tensors;
  fold_block(model.spec, 1, folds, whole, mx::float32);
  for (const auto& edge : edges)
    if (edge.block == 1 && folds.count(edge.producer)) fold(edge, folds.at(edge.producer), edgewise, mx::float32);
  int changed = 0;
  for (const auto& [name, tensor] : whole) {
    EXPECT_TRUE(same_bytes(tensor, edgewise.at(name))) << name;
    const bool same = same_bytes(tensor, model.tensors.at(name));
    changed += !same;
    if (!same) EXPECT_TRUE(in_block(model.spec, 1, name)) << name;
  }
  EXPECT_GE(changed, 2);
}

INSTANTIATE_TEST_SUITE_P(Families, FoldTest, testing::ValuesIn(known_model_types()), [](const auto& info) { return oracle::name_of(info.param); });

/// norm "n" [channels] → linear "a" [1, channels].
struct NormEdge {
  NormEdge(const mx::array& weight, float offset, mx::Dtype stored) {
    edge.producer = "n", edge.norm = NormSpec{.path = "n", .offset = offset};
    edge.consumers = {"a"};
    edge.channels = edge.head_dim = weight.shape(0);
    tensors.insert({"n.weight", mx::astype(weight, stored)});
    tensors.insert({"a.weight", mx::ones({1, edge.channels}, mx::bfloat16)});
  }
  Edge edge;
  Tensors tensors;
};

TEST(Fold, ReturnedScalesGiveTheSameNormsWhereverTheyLand) {
  // Many channels, and targets all over: the hard ones are those beside the offset, where 16 bits resolve more of the weight than f32 of the scale.
  constexpr int kChannels = 1 << 16;
  for (const auto stored : {mx::bfloat16, mx::float16})
    for (const float offset : {0.0f, 1.0f}) {
      const NormEdge start(mx::random::uniform(mx::array(0.25f - offset), mx::array(4.0f - offset), {kChannels}, mx::float32, mx::random::key(1)),
                           offset, stored);
      const auto used = f32(mx::add(start.tensors.at("n.weight"), mx::array(offset, stored)));
      const auto spread = mx::random::normal({kChannels}, mx::float32, mx::random::key(2)),
                 depth = mx::random::uniform(mx::array(-20.0f), mx::array(-1.0f), {kChannels}, mx::float32, mx::random::key(3));
      // Half of the targets are random, half are 1 ± 2^-1 … 2^-20.
      auto scales = mx::random::uniform(mx::array(0.5f), mx::array(2.0f), {kChannels}, mx::float32, mx::random::key(4));
      const auto beside = mx::divide(used, mx::add(mx::array(1.0f), mx::multiply(mx::sign(spread), mx::power(mx::array(2.0f), depth))));
      scales =
          mx::where(mx::greater(mx::random::uniform(mx::array(0.0f), mx::array(1.0f), {kChannels}, mx::float32, mx::random::key(5)), mx::array(0.5f)),
                    scales, beside);
      auto first = start.tensors, second = start.tensors;
      const auto effective = fold(start.edge, scales, first, stored);
      const auto again = fold(start.edge, effective, second, stored);
      const auto differ = mx::sum(mx::not_equal(first.at("n.weight"), second.at("n.weight"))).item<std::uint32_t>();
      EXPECT_EQ(differ, 0u) << "offset " << offset;
      EXPECT_TRUE(mx::allclose(effective, again, 1e-6, 0).item<bool>());
      // Little is lost on the way: a target of 1/8 is off by 2^-9 of itself as a sum and by 2^-9 as a weight near −1, together 9/512; others by less.
      EXPECT_TRUE(mx::allclose(effective, scales, 1.0 / 55, 0).item<bool>());
    }
}

TEST(Fold, AChannelThatItsOffsetDrownsKeepsItsWeight) {
  // 1 − 2^-8 is the last bf16 below 1. With 1/256 in use, half of that cannot be stored, twice can.
  const float last = std::ldexp(1.0f, -8) - 1;
  NormEdge norm(mx::array({last, last, -1.0f, 0.5f}), 1, mx::bfloat16);
  const auto used = values(fold(norm.edge, mx::array({1.9f, 0.5f, 0.5f, 1.5f}), norm.tensors, mx::bfloat16));
  const auto weight = values(norm.tensors.at("n.weight"));
  EXPECT_EQ(weight, (std::vector<float>{last, std::ldexp(1.0f, -7) - 1, -1, 0}));
  EXPECT_EQ(used, (std::vector<float>{1, 0.5f, 1, 1.5f}));
  EXPECT_EQ(values(norm.tensors.at("a.weight")), used);
}

TEST(Fold, ChangedLinearsAreF32) {
  NormEdge norm(mx::ones({4}), 0, mx::bfloat16);
  fold(norm.edge, mx::full({4}, 1.1f), norm.tensors, mx::bfloat16);
  EXPECT_EQ(norm.tensors.at("a.weight").dtype(), mx::float32);
  EXPECT_EQ(norm.tensors.at("n.weight").dtype(), mx::bfloat16);
}

TEST(Fold, ColumnsOfGroupedHeads) {
  Edge edge;
  edge.head_dim = 4, edge.repeats = 3, edge.channels = 8;  // two value heads, each read by three query heads
  for (const int experts : {0, 5}) {
    edge.experts = experts;
    const auto scales = random_scales(edge, 1), columns = column_scales(edge, scales);
    EXPECT_EQ(columns.shape(), (experts > 0 ? mx::Shape{5, 24} : mx::Shape{24}));
    const auto s = values(scales), found = values(columns);
    for (int e = 0; e < std::max(1, experts); ++e)
      for (int head = 0; head < 2; ++head)
        for (int reader = 0; reader < 3; ++reader)
          for (int d = 0; d < 4; ++d) EXPECT_EQ(found[e * 24 + (head * 3 + reader) * 4 + d], s[e * 8 + head * 4 + d]);
  }
}

TEST(Fold, FusedRowsAndExperts) {
  // A fused producer: rows 2 and 3 of each expert are the edge's, with their biases; the rows before and behind them are others'.
  Edge edge;
  edge.producer = "p", edge.consumers = {"a", "b"}, edge.channels = edge.head_dim = 2, edge.rows = Part::piece(Role::up, 2, 2), edge.experts = 2;
  Tensors tensors{
      {"p.weight", mx::ones({2, 5, 3})}, {"p.bias", mx::ones({2, 5})}, {"a.weight", mx::ones({2, 1, 2})}, {"b.weight", mx::ones({2, 1, 2})}};
  fold(edge, mx::array({2.0f, 4.0f, 8.0f, 16.0f}, {2, 2}), tensors, mx::float32);
  EXPECT_EQ(values(tensors.at("p.bias")), (std::vector<float>{1, 1, 0.5, 0.25, 1, 1, 1, 0.125, 0.0625, 1}));
  const auto weight = values(tensors.at("p.weight")), bias = values(tensors.at("p.bias"));
  for (int i = 0; i < 30; ++i) EXPECT_EQ(weight[i], bias[i / 3]) << i;
  for (const auto* name : {"a.weight", "b.weight"}) EXPECT_EQ(values(tensors.at(name)), (std::vector<float>{2, 4, 8, 16}));
}

TEST(Fold, RefusesOtherShapes) {
  const NormEdge good(mx::ones({4}), 0, mx::float32);
  const auto refused = [&](const mx::array& scales, const char* changed, const mx::array& tensor, const Edge& edge) {
    SCOPED_TRACE(changed + testing::PrintToString(tensor.size()));
    auto tensors = good.tensors;
    tensors.insert_or_assign(changed, tensor);
    EXPECT_THROW(
        {
          fold(edge, scales, tensors, mx::float32);
          for (auto& [name, made] : tensors) made.eval();
        },
        std::invalid_argument);
  };
  const auto ones = mx::ones({4}), consumer = good.tensors.at("a.weight");
  refused(mx::ones({5}), "a.weight", consumer, good.edge);
  refused(mx::ones({1}), "a.weight", consumer, good.edge);
  refused(mx::ones({2, 4}), "a.weight", consumer, good.edge);
  refused(mx::astype(ones, mx::bfloat16), "a.weight", consumer, good.edge);
  refused(ones, "a.weight", mx::ones({2, 5}), good.edge);
  refused(ones, "a.weight", mx::ones({2, 1}), good.edge);
  refused(ones, "n.weight", mx::ones({5}), good.edge);
  refused(ones, "n.weight", mx::ones({1}), good.edge);
  auto experts = good.edge;
  experts.experts = 2;
  refused(ones, "a.weight", mx::ones({2, 1, 4}), experts);
  auto linear = good.edge;
  linear.norm.reset(), linear.rows = Part::piece(Role::up, 2, 4);
  refused(ones, "n.weight", mx::ones({5, 3}), linear);
}

}  // namespace
}  // namespace lquant::model
