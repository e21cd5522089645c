#include "kernels/gated_delta.h"

#include <algorithm>

#include "kernels/elementwise_testing.h"
#include "kernels/gated_delta_paths.h"
#include "oracle/kernels_gated_delta.h"

namespace lquant::kernels {
namespace {

using namespace testing;
using oracle::DeltaInputs;
using oracle::DeltaSize;

using Function = decltype(&gated_delta);

struct Arrays {
  mx::array q, k, v, log_decay, beta;
  std::optional<mx::array> segments, state;

  std::pair<mx::array, mx::array> with(Function function) const { return function(q, k, v, log_decay, beta, segments, state); }
};

struct Case {
  const char* name;
  DeltaSize size;
  bool state = false;
  int texts = 0;          ///< above 0: segments, as many a row, of unequal length
  float decay = 1;        ///< deviation of the logarithms
  bool repeated = false;  ///< all keys are one, which nothing decays and every token writes anew
  bool channels = false;  ///< a decay for each key channel
};

// Chunks are of 64 tokens, or of 16 where each channel has a decay of its own.
const std::vector<Case> kCases = {
    {"one token", {1, 1, 1, 1, 8, 8}},
    {"one token behind others", {2, 1, 2, 4, 16, 8}, true},
    {"five tokens", {2, 5, 2, 2, 8, 16}},
    {"a chunk", {1, 64, 1, 2, 16, 16}},
    {"a chunk and a token", {2, 65, 2, 4, 16, 24}, true},
    {"chunks", {1, 200, 2, 2, 32, 32}, true},
    {"a text a row", {2, 70, 1, 2, 16, 16}, false, 1},
    {"texts", {2, 150, 2, 4, 16, 16}, false, 5},
    {"texts shorter than a chunk", {1, 130, 1, 1, 8, 8}, false, 20},
    {"strong and weak decays", {1, 140, 1, 2, 16, 16}, true, 0, 60},
    {"repeated keys", {1, 130, 1, 1, 16, 16}, false, 0, 0, true},
    {"channels, one token behind others", {2, 1, 2, 4, 16, 8}, true, 0, 1, false, true},
    {"channels, five tokens", {2, 5, 2, 2, 8, 16}, false, 0, 1, false, true},
    {"channels, chunks", {2, 70, 2, 4, 24, 40}, true, 0, 1, false, true},
    {"channels, texts", {2, 150, 1, 2, 16, 16}, false, 5, 1, false, true},
    {"channels, strong and weak decays", {1, 140, 1, 2, 16, 16}, true, 0, 60, false, true},
    {"channels, repeated keys", {1, 130, 1, 1, 16, 16}, false, 0, 0, true, true},
};

std::vector<std::int32_t> segments_of(const Case& c) {
  std::vector<std::int32_t> all;
  for (std::int64_t b = 0; b < c.size.batch; ++b)
    for (std::int64_t t = 0; t < c.size.tokens; ++t)  // squares: texts become longer along the row
      all.push_back(static_cast<std::int32_t>(std::sqrt(static_cast<double>(t * c.texts * c.texts / c.size.tokens + b))));
  return all;
}

mx::array unit_rows(const mx::array& x) { return mx::divide(x, mx::sqrt(mx::sum(mx::square(x), -1, /*keepdims=*/true))); }

Arrays arrays_of(const Case& c, mx::Dtype dtype) {
  const auto [batch, tokens, key_heads, value_heads, key_dim, value_dim] = c.size;
  const auto shape = [&](std::int64_t heads, std::int64_t width) {
    return mx::Shape{static_cast<int>(batch), static_cast<int>(tokens), static_cast<int>(heads), static_cast<int>(width)};
  };
  const mx::Shape by_head{static_cast<int>(batch), static_cast<int>(tokens), static_cast<int>(value_heads)};
  const auto rates = c.channels ? shape(value_heads, key_dim) : by_head;
  auto keys = unit_rows(normal(shape(key_heads, key_dim), mx::float32, 2));
  if (c.repeated) keys = mx::broadcast_to(mx::slice(keys, {0, 0, 0, 0}, {1, 1, 1, keys.shape(3)}), keys.shape());
  Arrays all{mx::astype(unit_rows(normal(shape(key_heads, key_dim), mx::float32, 1)), dtype),
             mx::astype(keys, dtype),
             normal(shape(value_heads, value_dim), dtype, 3),
             mx::negative(mx::abs(normal(rates, mx::float32, 4, c.decay))),
             mx::astype(c.repeated ? mx::ones(by_head) : mx::sigmoid(normal(by_head, mx::float32, 5, 2)), dtype),
             std::nullopt,
             std::nullopt};
  if (c.decay > 1) all.log_decay = mx::where(mx::greater(normal(rates, mx::float32, 8), mx::array(0.5f)), all.log_decay, mx::array(-1e-3f));
  if (c.state)
    all.state =
        normal({static_cast<int>(batch), static_cast<int>(value_heads), static_cast<int>(value_dim), static_cast<int>(key_dim)}, mx::float32, 6);
  if (c.texts > 0) all.segments = mx::array(segments_of(c).data(), {static_cast<int>(batch), static_cast<int>(tokens)}, mx::int32);
  return all;
}

DeltaInputs inputs_of(const Case& c, const Arrays& x) {
  DeltaInputs in{doubles(x.q), doubles(x.k), doubles(x.v), doubles(x.log_decay), doubles(x.beta)};
  if (x.state) in.state = doubles(*x.state);
  if (x.segments) in.segments = segments_of(c);
  return in;
}

/// With keys of length 1 and β up to 1 a step lengthens no difference between two states: what is rounded at one token reaches the later ones no
/// larger than it was made. A token's sums have some Dk + 64 terms, so T tokens make √(T (Dk + 64)) independent roundings of the largest number; four
/// times that is never reached. Decays are exponentials of sums, off by the roundings of up to 64 terms beside a rate that itself falls with the sum.
double inner_bound(const Case& c, double largest) {
  return 4 * std::sqrt(static_cast<double>(c.size.tokens * (c.size.key_dim + 64))) * kF32 * largest;
}

class GatedDelta : public ::testing::TestWithParam<std::tuple<Case, Function>> {};

INSTANTIATE_TEST_SUITE_P(Cases, GatedDelta, ::testing::Combine(::testing::ValuesIn(kCases), ::testing::Values(&gated_delta, &gated_delta_mlx)));

TEST_P(GatedDelta, MatchesOracle) {
  const auto& [c, function] = GetParam();
  for (auto dtype : kDtypes) {
    const auto arrays = arrays_of(c, dtype);
    const auto want = oracle::gated_delta(c.size, inputs_of(c, arrays));
    const auto [y, state] = arrays.with(function);
    EXPECT_EQ(y.dtype(), dtype);
    EXPECT_EQ(state.dtype(), mx::float32);
    const double inner = inner_bound(c, want.largest);
    Values bound;
    for (const double value : want.y) bound.push_back(inner + std::abs(value) * unit(dtype) + tiny(dtype));
    expect_close(y, want.y, bound, c.name);
    expect_close(state, want.state, Values(want.state.size(), inner), c.name);
  }
}

TEST_P(GatedDelta, GradientsMatchFiniteDifferences) {
  const auto& [given, function] = GetParam();
  auto c = given;  // the oracle runs twice for each number of its inputs
  c.size.batch = 1, c.size.key_dim = 3, c.size.value_dim = 2, c.size.tokens = std::min<std::int64_t>(c.size.tokens, 70);
  const auto arrays = arrays_of(c, mx::float32);
  const auto in = inputs_of(c, arrays);
  const auto want = oracle::gated_delta(c.size, in);
  const auto cotangent = normal(arrays.v.shape(), mx::float32, 9);
  const auto state_cotangent = normal({1, arrays.v.shape(2), 2, 3}, mx::float32, 10);
  auto both = doubles(cotangent);
  const auto of_state = doubles(state_cotangent);
  both.insert(both.end(), of_state.begin(), of_state.end());

  std::vector<mx::array> primals{arrays.q, arrays.k, arrays.v, arrays.log_decay, arrays.beta};
  if (arrays.state) primals.push_back(*arrays.state);
  const auto gradients = mx::vjp(
                             [&](const std::vector<mx::array>& x) {
                               const auto [y, state] =
                                   function(x[0], x[1], x[2], x[3], x[4], arrays.segments, arrays.state ? std::optional(x[5]) : std::nullopt);
                               return std::vector<mx::array>{y, state};
                             },
                             primals, {cotangent, state_cotangent})
                             .second;
  const std::vector<std::vector<double> DeltaInputs::*> members{&DeltaInputs::q,         &DeltaInputs::k,    &DeltaInputs::v,
                                                                &DeltaInputs::log_decay, &DeltaInputs::beta, &DeltaInputs::state};
  for (std::size_t i = 0; i < primals.size(); ++i) {
    const auto numeric = numeric_gradient(
        [&](const Values& x) {
          auto changed = in;
          changed.*members[i] = x;
          auto result = oracle::gated_delta(c.size, changed);
          result.y.insert(result.y.end(), result.state.begin(), result.state.end());
          return result.y;
        },
        in.*members[i], both);
    // A gradient is the same kind of sum, over the cotangents of all later tokens.
    double largest = want.largest;
    for (const double value : numeric) largest = std::max(largest, std::abs(value));
    const double bound = inner_bound(c, largest * std::max(1.0, want.largest)) + kDifference * largest;
    expect_close(gradients[i], numeric, Values(numeric.size(), bound), c.name);
  }
}

TEST(GatedDelta, ATextGoesOnFromItsState) {
  for (const bool channels : {false, true}) {
    const Case c{"", {2, 150, 2, 4, 16, 16}, false, 0, 1, false, channels};
    const auto all = arrays_of(c, mx::float32);
    const auto [whole, last] = all.with(&gated_delta);
    const auto cut = [&](const mx::array& x, int first, int end) {
      auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
      start[1] = first, stop[1] = end;
      return mx::slice(x, start, stop);
    };
    std::vector<mx::array> results;
    std::optional<mx::array> state;
    for (const auto& [first, end] : {std::pair{0, 70}, {70, 71}, {71, 150}}) {
      auto [y, next] = gated_delta(cut(all.q, first, end), cut(all.k, first, end), cut(all.v, first, end), cut(all.log_decay, first, end),
                                   cut(all.beta, first, end), std::nullopt, state);
      results.push_back(y);
      state = next;
    }
    const double bound = inner_bound(c, 8);
    expect_close(mx::concatenate(results, 1), doubles(whole), Values(whole.size(), bound), "results");
    expect_close(*state, doubles(last), Values(last.size(), bound), "state");
  }
}

TEST(GatedDelta, BytesDoNotDependOnThreads) {
  for (const bool channels : {false, true})
    expect_thread_independent([&] {
      const auto all = arrays_of({"", {2, 150, 2, 4, 16, 16}, false, 3, 1, false, channels}, mx::float32);
      const auto [results, gradients] = mx::vjp(
          [&](const std::vector<mx::array>& x) {
            const auto [y, state] = gated_delta(x[0], x[1], x[2], x[3], x[4], all.segments);
            return std::vector<mx::array>{y};
          },
          {all.q, all.k, all.v, all.log_decay, all.beta}, {all.v});
      auto both = results;
      both.insert(both.end(), gradients.begin(), gradients.end());
      return both;
    });
}

TEST(GatedDelta, RefusesWhatDoesNotFit) {
  const auto all = arrays_of({"", {2, 9, 2, 4, 8, 16}, true}, mx::float32);
  const auto segments = mx::zeros({2, 9}, mx::int32);
  EXPECT_NO_THROW(all.with(&gated_delta));
  EXPECT_THROW(gated_delta(all.v, all.k, all.v, all.log_decay, all.beta), std::invalid_argument);
  EXPECT_THROW(gated_delta(all.q, all.k, all.v, all.v, all.beta), std::invalid_argument);
  EXPECT_THROW(gated_delta(all.q, all.k, all.v, all.log_decay, all.beta, segments, all.state), std::invalid_argument);
  EXPECT_THROW(gated_delta(all.q, all.k, all.v, all.log_decay, all.beta, mx::astype(segments, mx::int64)), std::invalid_argument);
  EXPECT_THROW(gated_delta(all.q, mx::astype(all.k, mx::bfloat16), all.v, all.log_decay, all.beta), std::invalid_argument);
}

}  // namespace
}  // namespace lquant::kernels
