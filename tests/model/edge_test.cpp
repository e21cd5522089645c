#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <map>

#include "model/forward.h"
#include "model/spec.h"
#include "oracle/model_random.h"

namespace lquant::model {
namespace {

namespace mx = mlx::core;

// An edge is right when scaling its producer and unscaling its consumers leaves the function as it was.
class EdgeTest : public testing::TestWithParam<std::string> {};

mx::array scale_rows(const mx::array& x, const mx::array& s, const Part& part, int rows) {
  // x [(E,) out, …], s [(E,) channels]: the part's rows are divided by s.
  std::vector<std::int32_t> channel(rows, s.shape(-1));  // rows of other parts: a factor of 1 stands behind the channels'
  for (int r = 0; r < part.rows; ++r) channel[part.row(r)] = r;
  auto last = s.shape();
  last.back() = 1;
  auto factor = mx::take(mx::concatenate({mx::reciprocal(s), mx::ones(last)}, -1), mx::array(channel.data(), {rows}, mx::int32), -1);
  return mx::multiply(x, x.ndim() > s.ndim() ? mx::expand_dims(factor, -1) : factor);
}

void apply(const Edge& edge, const ModelSpec& spec, Tensors& tensors) {
  const mx::Shape shape = edge.experts > 0 ? mx::Shape{edge.experts, edge.channels} : mx::Shape{edge.channels};
  const auto scales =
      mx::random::uniform(mx::array(0.5f), mx::array(2.0f), shape, mx::float32, mx::random::key(std::hash<std::string>{}(edge.producer)));
  auto& weight = tensors.at(edge.producer + ".weight");
  const auto s = edge.degree == 2 ? mx::sqrt(scales) : scales;
  if (edge.norm) {
    weight = mx::subtract(mx::divide(mx::add(weight, mx::array(edge.norm->offset)), s), mx::array(edge.norm->offset));
    if (edge.norm->bias) tensors.at(edge.norm->bias_name()) = mx::divide(tensors.at(edge.norm->bias_name()), s);
  } else {
    const int rows = weight.shape(-2);
    weight = scale_rows(weight, s, edge.rows, rows);
    if (const auto bias = tensors.find(edge.producer + ".bias"); bias != tensors.end()) bias->second = scale_rows(bias->second, s, edge.rows, rows);
  }
  for (const auto& path : edge.consumers) {
    auto& consumer = tensors.at(path + ".weight");
    std::vector<std::int32_t> channel;
    for (int c = 0; c < consumer.shape(-1); ++c) channel.push_back(edge.channel(c));
    const auto columns = mx::take(scales, mx::array(channel.data(), {consumer.shape(-1)}, mx::int32), -1);
    consumer = mx::multiply(consumer, columns.ndim() == 2 ? mx::expand_dims(columns, -2) : columns);
  }
}

TEST_P(EdgeTest, ScalingAlongEveryEdgeChangesNothing) {
  const auto spec = spec_from_config(oracle::tiny_config(GetParam()));
  const auto tensors = oracle::random_tensors(spec, 5);
  const auto ids = mx::random::randint(0, spec.vocab, {2, 9}, mx::int32, mx::random::key(3));
  const auto before = forward(spec, tensors, {}, ids, mx::float32);
  auto scaled = tensors;
  for (const auto& edge : spec.edges()) apply(edge, spec, scaled);
  const auto after = forward(spec, scaled, {}, ids, mx::float32);
  const auto largest = mx::max(mx::abs(before)).item<float>();
  // Every weight is rounded anew: some 10 relative errors of 6e-8 a block, amplified by the two blocks at most a hundredfold.
  EXPECT_LT(mx::max(mx::abs(mx::subtract(before, after))).item<float>(), 1e-4f * largest);
}

TEST_P(EdgeTest, NoLinearIsFedByTwoEdges) {
  const auto spec = spec_from_config(oracle::tiny_config(GetParam()));
  std::map<std::string, int> fed;
  for (const auto& edge : spec.edges())
    for (const auto& path : edge.consumers) ++fed[path];
  EXPECT_FALSE(fed.empty());
  for (const auto* linear : spec.linears()) EXPECT_LE(fed[linear->path], linear->block >= 0 ? 1 : 0) << linear->path;
}

INSTANTIATE_TEST_SUITE_P(Families, EdgeTest, testing::ValuesIn(known_model_types()), [](const auto& info) { return oracle::name_of(info.param); });

}  // namespace
}  // namespace lquant::model
