// The forward pass and its gradients in 16 bits beside the same in f32, of the same numbers, for every family. On a GPU, and with
// LQUANT_KERNELS=mlx, MLX's own ops do this; else the CPU's kernels.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "kernels/head_loss.h"
#include "kernels/scaled_vjp.h"
#include "model/forward.h"
#include "model/generate.h"
#include "model/ops/gated_mlp.h"
#include "oracle/model_random.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

/// In blocks of two steps, attention and an MLP, each as often as it runs: some models' have more.
int depth_of(const ModelSpec& spec) {
  std::size_t steps = 0;
  for (const auto& visit : spec.visits()) steps += std::max<std::size_t>(2, spec.blocks[visit.block].steps.size());
  return static_cast<int>(steps + 1) / 2;
}

class DtypesTest : public testing::TestWithParam<std::pair<std::string, mx::Dtype>> {
 protected:
  const mx::Dtype dtype = GetParam().second;
  // What rounding decides as a whole is taken out: which experts are chosen, whether a product lies at a limit.
  const ModelSpec spec =
      oracle::without_limits(oracle::with_all_experts(oracle::without_steps(spec_from_config(oracle::tiny_config(GetParam().first)))));
  const int depth = depth_of(spec);
  const Tensors tensors = cast(oracle::random_tensors(spec, 11), dtype), wide = cast(tensors, mx::float32);
  const mx::array ids = mx::random::randint(0, spec.vocab, {3, 14}, mx::int32, mx::random::key(1));

  /// Random models differ in what they make of an error: norms of a few numbers, exponentials and gates behind each other may blow it up. How much is
  /// seen in f32, with every weight off by a unit u at random. A linear that is off so is worth some ten roundings of its result, each of u/2 at
  /// most; models have about twice as many roundings per linear. So an error that is beyond what roundings alone give must be within thrice what u
  /// makes of the weights.
  Tensors off_by_a_unit() const {
    auto off = wide;
    for (auto& [name, value] : off) {
      const auto noise =
          mx::random::normal(value.shape(), mx::float32, 0, static_cast<float>(oracle::unit_of(dtype)), mx::random::key(name.size() + 7));
      value = mx::multiply(value, mx::add(mx::array(1.0f), noise));
    }
    return off;
  }
};

std::vector<std::pair<std::string, mx::Dtype>> models() {
  std::vector<std::pair<std::string, mx::Dtype>> all;
  for (const auto& type : known_model_types())
    for (const auto dtype : {mx::bfloat16, mx::float16}) all.push_back({type, dtype});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Families, DtypesTest, testing::ValuesIn(models()),
                         [](const auto& info) { return oracle::name_of(info.param.first) + "_" + oracle::name_of(info.param.second); });

TEST_P(DtypesTest, LogitsAreThoseOfSinglePrecision) {
  const auto spec = oracle::with_all_experts(this->spec);  // rounding decides which experts are chosen
  const auto logits = forward(spec, tensors, {}, ids, dtype);
  EXPECT_EQ(logits.dtype(), dtype);
  const auto want = forward(spec, wide, {}, ids, mx::float32);
  const double error = oracle::distance_between(logits, want);
  if (error < oracle::rounding_of(depth, dtype)) return;
  EXPECT_LT(error, 3 * oracle::distance_between(forward(spec, off_by_a_unit(), {}, ids, mx::float32), want));
}

TEST_P(DtypesTest, PackedAndDecodedWithACache) {
  auto packed = tensors;
  Formats formats;
  for (const auto* linear : spec.linears()) oracle::pack(packed, formats, linear->path, {codec::Mode::affine, 4, 32});
  const auto whole = forward(spec, packed, formats, ids, dtype);
  Cache cache(static_cast<int>(spec.visits().size()));
  Context context;
  context.cache = &cache;
  std::vector<mx::array> parts;
  for (const auto& [from, to] : {std::pair{0, 6}, {6, 7}, {7, 14}}) {
    parts.push_back(forward(spec, packed, formats, mx::slice(ids, {0, from}, {3, to}), dtype, context));
    mx::eval(parts.back());
  }
  EXPECT_LT(oracle::distance_between(mx::concatenate(parts, 1), whole), oracle::rounding_of(depth, dtype));
}

TEST_P(DtypesTest, GradientsAreThoseOfSinglePrecision) {
  const auto spec = oracle::with_all_experts(this->spec);  // rounding decides which experts are chosen
  const auto gradients = [&](const Tensors& from, mx::Dtype in) {
    std::vector<mx::array> weights;
    for (const auto* linear : spec.linears()) weights.push_back(from.at(linear->path + ".weight"));
    const auto loss = [&](const std::vector<mx::array>& w) {
      auto own = from;
      for (std::size_t i = 0; i < w.size(); ++i) own.insert_or_assign(spec.linears()[i]->path + ".weight", w[i]);
      const auto hidden = mx::reshape(hidden_states(spec, own, {}, ids, in), {-1, spec.hidden});
      const auto end = head(spec, own, {}, in);
      kernels::HeadLossArgs args;
      args.softcap = end.softcap;
      args.multiplier = end.multiplier;
      return std::vector<mx::array>{
          kernels::cross_entropy_loss(hidden, end.weight, end.bias, mx::flatten(mx::roll(ids, -1, 1)), mx::ones({42}), args)};
    };
    return kernels::loss_gradients(loss, weights, in).gradients;
  };
  const auto got = gradients(tensors, dtype), want = gradients(wide, mx::float32);
  std::vector<mx::array> moved;
  const auto made_of_errors = [&](std::size_t i) {
    if (moved.empty()) {
      moved = gradients(off_by_a_unit(), mx::float32);
    }
    return oracle::distance_between(moved[i], want[i]);
  };
  // The backward pass leaves about twice as many tensors in 16 bits as the forward pass.
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto& linear = *spec.linears()[i];
    const auto* mlp = linear.block < 0 ? nullptr : find_op<GatedMlp>(spec.blocks[linear.block]);
    // Rounding decides which gates pass a threshold, and tensors that are unread or only choose have no gradient.
    if (linear.reads == 0 || linear.only_chooses || ((linear.role == Role::gate || linear.role == Role::up) && mlp && mlp->sparse_above)) continue;
    const double error = oracle::distance_between(got[i], want[i]);
    if (error < oracle::rounding_of(3 * depth, dtype)) continue;
    EXPECT_LT(error, 3 * made_of_errors(i)) << linear.path;
  }
}

TEST_P(DtypesTest, Samples) {
  SampleOptions options;
  options.max_tokens = 5;
  options.seed = 3;
  options.temperature = 1;
  const auto drawn = sample(spec, tensors, {}, dtype, {{1, 2, 3}, {4, 5}}, options);
  ASSERT_EQ(drawn.size(), 2u);
  for (const auto& tokens : drawn) EXPECT_EQ(tokens.size(), 5u);
  EXPECT_EQ(drawn, sample(spec, tensors, {}, dtype, {{1, 2, 3}, {4, 5}}, options));
}

}  // namespace
}  // namespace lquant::model
