#include "quantize/awq.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

#include "base/error.h"
#include "codec/quantize.h"
#include "kernels/moments.h"
#include "oracle/quantize_awq.h"
#include "oracle/quantize_tiny.h"

namespace lquant::quantize {
namespace {

using calibration::Hessian;
using model::Edge;

mx::array normal(const mx::Shape& shape, unsigned seed) { return mx::random::normal(shape, mx::float32, mx::random::key(seed)); }

/// Sizes of channels: large activations meet small weights, as behind a norm that has learned them.
mx::array sizes(int k) { return mx::exp(normal({k}, 1001)); }

/// Inputs with strong directions in common, as hidden states have; `outlier` is 40 times as large again.
mx::array inputs(int tokens, int k, unsigned seed, int outlier = -1) {
  auto x = mx::add(normal({tokens, k}, seed), mx::matmul(normal({tokens, 4}, seed + 1), normal({4, k}, 1000)));
  x = mx::multiply(x, sizes(k));
  if (outlier < 0) return x;
  return mx::multiply(x, mx::where(mx::equal(mx::arange(k), mx::array(outlier)), mx::array(40.0f), mx::array(1.0f)));
}

Hessian hessian_of(const mx::array& x) { return {kernels::gram(x), std::nullopt, static_cast<double>(x.shape(0))}; }

mx::array weights(const mx::Shape& shape, unsigned seed) {
  return mx::divide(mx::multiply(normal(shape, seed), mx::array(0.1f)), sizes(shape.back()));
}

std::vector<float> values(const mx::array& x) {
  auto host = mx::contiguous(x);
  host.eval();
  return {host.data<float>(), host.data<float>() + host.size()};
}

Edge edge_of(int channels) {
  Edge edge;
  edge.producer = "norm", edge.channels = edge.head_dim = channels;
  return edge;
}

const codec::Format kThree{codec::Mode::affine, 3, 32}, kEight{codec::Mode::affine, 8, 64};

AwqOptions with(int grid, int shortlist, bool clip = true, bool duo = true) {
  AwqOptions options;
  options.grid = grid, options.shortlist = shortlist, options.clip = clip, options.duo = duo;
  return options;
}

constexpr int kAll = 1000;  // a shortlist that leaves nothing out

/// An edge with its readers.
struct Case {
  const char* name;
  Edge edge;
  std::vector<Reader> readers;
  mx::Dtype dtype = mx::bfloat16;
};

Case plain() { return {"plain", edge_of(64), {{weights({48, 64}, 1), kThree, {hessian_of(inputs(300, 64, 2))}}}}; }

/// Three readers as a mixture of experts has them: of several formats, one of which has seen more tokens than the others.
Case several() {
  Case c{"several", edge_of(64), {}};
  const auto most = inputs(200, 64, 3), few = inputs(30, 64, 5);
  c.readers.push_back({weights({24, 64}, 4), kThree, {hessian_of(few)}});
  c.readers.push_back({weights({8, 64}, 6), kEight, {hessian_of(most)}});
  c.readers.push_back({weights({40, 64}, 8), {codec::Mode::affine, 2, 64}, {hessian_of(few)}});
  return c;
}

/// Two value heads of 16, each read by two query heads.
Case grouped() {
  Case c{"grouped", edge_of(32), {{weights({32, 64}, 9), kThree, {hessian_of(inputs(300, 64, 10))}}}, mx::float32};
  c.edge.head_dim = 16, c.edge.repeats = 2;
  return c;
}

/// More rows than judge.
Case tall() { return {"tall", edge_of(32), {{weights({400, 32}, 11), kThree, {hessian_of(inputs(100, 32, 12))}}}}; }

class AwqSearch : public ::testing::TestWithParam<std::tuple<Case (*)(), bool>> {};

TEST_P(AwqSearch, ReportsTheErrorsOfTheDefinition) {
  const auto c = std::get<0>(GetParam())();
  const bool clip = std::get<1>(GetParam());
  constexpr int kGrid = 4;
  const auto found = search_scales(c.edge, c.readers, with(kGrid, kAll, clip), c.dtype);
  const auto judged = [&](const std::vector<float>& scales) { return oracle::judged_error(c.edge, c.readers, scales, clip, c.dtype); };
  const auto unscaled = judged(std::vector<float>(c.edge.channels, 1));
  ASSERT_LT(unscaled.rounding, 1e-3 * unscaled.error);  // else the bound, not the code, would pass the test
  EXPECT_NEAR(found.unscaled, unscaled.error, unscaled.rounding);
  ASSERT_GT(found.candidates.size(), 2u);
  std::set<std::pair<bool, int>> points;
  for (const auto& candidate : found.candidates) {
    const auto scales = values(candidate.scales);
    const auto expected = oracle::awq_scales(c.edge, c.readers, candidate.r, candidate.duo);
    // f32 powers of numbers of which ln is at most 10: its error of 2^-24 is multiplied by that, a few times over.
    for (int i = 0; i < c.edge.channels; ++i) EXPECT_NEAR(scales[i], expected[i], 1e-5 * expected[i]) << "r " << candidate.r << ", channel " << i;
    const auto error = judged(scales);
    EXPECT_NEAR(candidate.error, error.error, error.rounding) << "r " << candidate.r;
    points.insert({candidate.duo, static_cast<int>(std::lround(candidate.r * kGrid))});
  }
  EXPECT_EQ(points.size(), found.candidates.size());
  // What is not among the candidates does not help. Its scales are known to 1e-5, which moves a code here and there between equals: 1e-3 of the
  // error.
  for (const bool duo : {false, true})
    for (int i = 0; i < kGrid; ++i) {
      const auto exact = oracle::awq_scales(c.edge, c.readers, double(i) / kGrid, duo);
      if (!points.count({duo, i}))
        EXPECT_GT(judged({exact.begin(), exact.end()}).error, unscaled.error * (1 - 1e-3)) << "r " << double(i) / kGrid << duo;
    }
}

INSTANTIATE_TEST_SUITE_P(All, AwqSearch, ::testing::Combine(::testing::Values(&plain, &several, &grouped, &tall), ::testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param)().name + std::string(std::get<1>(info.param) ? "Searched" : "Plain");
                         });

/// Mean squared output error on inputs x of a weight that was scaled, quantized to its groups' minima and maxima, and scaled back.
double output_error(const mx::array& w, const mx::array& scales, const mx::array& x) {
  const auto q = codec::dequantize(codec::quantize(mx::multiply(w, scales), kThree), kThree, mx::float32);
  const auto e = mx::subtract(w, mx::divide(q, scales));
  return mx::sum(mx::square(mx::matmul(x, mx::transpose(e)))).item<float>() / x.shape(0);
}

TEST(Awq, AChannelOfHugeActivationsIsScaledUp) {
  constexpr int kOutlier = 11;
  const auto alike = [](const mx::array& x) { return mx::divide(x, sizes(64)); };
  const auto w = mx::multiply(normal({64, 64}, 13), mx::array(0.1f));
  const auto found = search_scales(edge_of(64), {{w, kThree, {hessian_of(alike(inputs(512, 64, 14, kOutlier)))}}}, with(10, 3, false), mx::float32);
  ASSERT_FALSE(found.candidates.empty());
  const auto& best = found.candidates.front();
  // All but all of the error is the outlier's. Scaled by 3, it costs a ninth of it, while its groups' steps grow by less than half (a weight of
  // 3σ among 32 of σ whose largest is near 2.2σ): below 1/9 · 1.5² = 1/4. Twice that is well below 1.
  EXPECT_LT(best.error, 0.5 * found.unscaled);
  const auto scales = values(best.scales);
  EXPECT_EQ(std::max_element(scales.begin(), scales.end()) - scales.begin(), kOutlier);
  // So it is on inputs that the search has not seen.
  const auto other = alike(inputs(512, 64, 50, kOutlier));
  EXPECT_LT(output_error(w, best.scales, other), 0.5 * output_error(w, mx::ones({64}), other));
}

TEST(Awq, ChannelsThatAreAlikeKeepTheirScales) {
  // Row i is row 0 turned by i: each channel has the same magnitudes relative to the same largest one, and all inputs are equally large.
  std::vector<float> turned;
  const auto row = values(normal({32}, 15));
  for (int i = 0; i < 32; ++i)
    for (int j = 0; j < 64; ++j) turned.push_back(row[(i + j) % 32]);
  const Reader reader{mx::array(turned.data(), {32, 64}, mx::float32), kThree, {{mx::multiply(mx::eye(64), mx::array(7.0f)), std::nullopt, 7}}};
  for (const bool clip : {false, true}) {
    const auto found = search_scales(edge_of(64), {reader}, with(10, kAll, clip), mx::float32);
    ASSERT_GT(found.unscaled, 0);
    for (const auto& candidate : found.candidates) {
      EXPECT_TRUE(mx::allclose(candidate.scales, mx::ones({64}), 1e-5, 0).item<bool>());
      // Sums of rounded products: what is gained is their rounding, 64 terms of 2^-24, and that of scales by 1 ± 2^-23 on weights.
      EXPECT_GT(candidate.error, found.unscaled * (1 - 1e-4));
    }
  }
}

TEST(Awq, CandidatesAreTheBestAndInOrder) {
  for (const auto make : {&plain, &several}) {
    const auto c = make();
    const auto all = search_scales(c.edge, c.readers, with(10, kAll), c.dtype);
    ASSERT_GT(all.candidates.size(), 5u);
    EXPECT_LE(all.candidates.size(), 19u);  // r = 0 is of use with duo alone
    for (std::size_t i = 0; i < all.candidates.size(); ++i) {
      EXPECT_LT(all.candidates[i].error, all.unscaled);
      if (i > 0) EXPECT_LE(all.candidates[i - 1].error, all.candidates[i].error);
    }
    for (const int shortlist : {0, 1, 3}) {
      const auto few = search_scales(c.edge, c.readers, with(10, shortlist), c.dtype);
      EXPECT_EQ(few.unscaled, all.unscaled);
      ASSERT_EQ(few.candidates.size(), static_cast<std::size_t>(shortlist));
      for (int i = 0; i < shortlist; ++i) {
        EXPECT_TRUE(oracle::same(few.candidates[i].scales, all.candidates[i].scales));
        EXPECT_EQ(few.candidates[i].error, all.candidates[i].error);
      }
    }
    for (const auto& candidate : search_scales(c.edge, c.readers, with(10, kAll, true, false), c.dtype).candidates) EXPECT_FALSE(candidate.duo);
    EXPECT_TRUE(search_scales(c.edge, c.readers, with(1, kAll, true, false), c.dtype).candidates.empty());
  }
}

/// √(largest · smallest) = 1, everything finite and above 0, channel by channel of each expert.
void expect_centred(const mx::array& scales) {
  const int channels = scales.shape(-1);
  const auto all = values(scales);
  for (auto row = all.begin(); row != all.end(); row += channels) {
    for (auto s = row; s != row + channels; ++s) EXPECT_TRUE(std::isfinite(*s) && *s > 0) << *s;
    // Two products, a root and a quotient in f32.
    EXPECT_NEAR(std::sqrt(double(*std::max_element(row, row + channels)) * *std::min_element(row, row + channels)), 1, 1e-6);
  }
}

TEST(Awq, ScalesAreCentredAndAboveZero) {
  const auto c = several();
  for (const auto& candidate : search_scales(c.edge, c.readers, with(10, kAll), c.dtype).candidates) expect_centred(candidate.scales);
}

TEST(Awq, DeadInputs) {
  const auto dead = mx::concatenate({mx::zeros({1, 24}), mx::ones({1, 40})}, 1);
  for (const bool clip : {false, true}) {
    const auto found = search_scales(edge_of(64), {{weights({32, 64}, 16), kThree, {hessian_of(mx::multiply(inputs(256, 64, 17, 40), dead))}}},
                                     with(10, kAll, clip), mx::bfloat16);
    EXPECT_TRUE(std::isfinite(found.unscaled));
    ASSERT_FALSE(found.candidates.empty());
    for (const auto& candidate : found.candidates) {
      EXPECT_TRUE(std::isfinite(candidate.error));
      expect_centred(candidate.scales);
    }
    // Weights of nothing, and inputs that are nothing at all: nothing can be gained.
    for (const auto& [w, h] : {std::pair{mx::zeros({32, 64}), mx::eye(64)}, std::pair{weights({32, 64}, 18), mx::zeros({64, 64})}}) {
      const auto none = search_scales(edge_of(64), {{w, kThree, {{h, std::nullopt, 64}}}}, with(10, kAll, clip), mx::bfloat16);
      EXPECT_EQ(none.unscaled, 0);
      EXPECT_TRUE(none.candidates.empty());
    }
  }
}

TEST(Awq, EachExpertHasScalesOfItsOwn) {
  // The third has seen nothing: its scales stay 1.
  const auto w = weights({3, 24, 64}, 19);
  const std::vector<Hessian> hessians{
      hessian_of(inputs(200, 64, 20, 8)), hessian_of(inputs(100, 64, 22, 50)), {mx::zeros({64, 64}), std::nullopt, 0}};
  auto edge = edge_of(64);
  edge.experts = 3;
  const auto found = search_scales(edge, {{w, kThree, hessians}}, with(6, 3), mx::bfloat16);
  ASSERT_EQ(found.candidates.size(), 1u);
  const auto& joined = found.candidates.front();
  ASSERT_EQ(joined.scales.shape(), (mx::Shape{3, 64}));
  expect_centred(joined.scales);
  double unscaled = 0, error = 0;
  for (int e = 0; e < 3; ++e) {
    const auto one = mx::reshape(mx::slice(w, {e, 0, 0}, {e + 1, 24, 64}), {24, 64}),
               row = mx::reshape(mx::slice(joined.scales, {e, 0}, {e + 1, 64}), {64});
    const auto alone = search_scales(edge_of(64), {{one, kThree, {hessians[e]}}}, with(6, 1), mx::bfloat16);
    unscaled += alone.unscaled;
    if (e == 2) {
      EXPECT_TRUE(alone.candidates.empty());
      EXPECT_TRUE(oracle::same(row, mx::ones({64})));
      continue;
    }
    ASSERT_FALSE(alone.candidates.empty());
    EXPECT_TRUE(oracle::same(row, alone.candidates.front().scales)) << e;
    error += alone.candidates.front().error;
    if (e == 0) EXPECT_EQ(joined.r, alone.candidates.front().r);
  }
  EXPECT_FALSE(mx::allclose(mx::slice(joined.scales, {0, 0}, {1, 64}), mx::slice(joined.scales, {1, 0}, {2, 64}), 0.1, 0).item<bool>());
  EXPECT_EQ(found.unscaled, unscaled);
  EXPECT_EQ(joined.error, error);
  // None of them can gain: no candidate at all.
  EXPECT_TRUE(search_scales(edge, {{w, kThree, {hessians[2], hessians[2], hessians[2]}}}, with(6, 3), mx::bfloat16).candidates.empty());
}

TEST(Awq, ANormThatExpertsAndARouterRead) {
  // One scale for all: the error is the sum over the experts (each by its own inputs) and the router.
  const std::vector<Hessian> hessians{hessian_of(inputs(60, 64, 24, 9)), hessian_of(inputs(90, 64, 26, 9))};
  const Reader router{weights({4, 64}, 28), kEight, {hessian_of(inputs(150, 64, 29, 9))}};
  const auto w = weights({2, 24, 64}, 31);
  std::vector<Reader> apart{router};
  for (int e = 0; e < 2; ++e) apart.push_back({mx::reshape(mx::slice(w, {e, 0, 0}, {e + 1, 24, 64}), {24, 64}), kThree, {hessians[e]}});
  const auto found = search_scales(edge_of(64), {router, {w, kThree, hessians}}, with(4, 1), mx::bfloat16);
  const auto expected = oracle::judged_error(edge_of(64), apart, values(mx::ones({64})), true, mx::bfloat16);
  EXPECT_NEAR(found.unscaled, expected.error, expected.rounding);
  ASSERT_EQ(found.candidates.size(), 1u);
  const auto& best = found.candidates.front();
  const auto scaled = oracle::judged_error(edge_of(64), apart, values(best.scales), true, mx::bfloat16);
  EXPECT_NEAR(best.error, scaled.error, scaled.rounding);
  const auto scales = oracle::awq_scales(edge_of(64), apart, best.r, best.duo);
  for (int i = 0; i < 64; ++i) EXPECT_NEAR(values(best.scales)[i], scales[i], 1e-5 * scales[i]);
}

TEST(Awq, RefusesWhatDoesNotFit) {
  const auto w = weights({8, 64}, 1);
  const auto h = hessian_of(inputs(20, 64, 2));
  auto experts = edge_of(64);
  experts.experts = 2;
  const auto refused = [](const Edge& edge, const std::vector<Reader>& readers) {
    EXPECT_THROW(search_scales(edge, readers, with(3, 3), mx::bfloat16), std::invalid_argument);
  };
  refused(edge_of(64), {});
  refused(edge_of(32), {{w, kThree, {h}}});                              // narrower than its reader
  refused(edge_of(64), {{w, kThree, {hessian_of(inputs(20, 32, 2))}}});  // moments of other inputs
  refused(edge_of(64), {{w, kThree, {}}});                               // none
  refused(edge_of(64), {{weights({2, 8, 64}, 1), kThree, {h}}});         // of one expert of two
  refused(experts, {{weights({3, 8, 64}, 1), kThree, {h, h, h}}});       // more experts than the edge has
  refused(experts, {{weights({1, 8, 64}, 1), kThree, {h}}});             // fewer
  refused(experts, {{w, kThree, {h}}});                                  // a plain linear inside experts
  refused(edge_of(64), {{mx::astype(w, mx::bfloat16), kThree, {h}}});    // not f32
}

TEST(Awq, RefusesMomentsThatAreNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const auto h = hessian_of(inputs(20, 64, 2));
    try {
      search_scales(edge_of(64), {{weights({8, 64}, 1), kThree, {{mx::add(h.moment, mx::array(bad)), std::nullopt, 20}}}}, with(3, 3), mx::bfloat16);
      ADD_FAILURE() << "was not refused";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("norm: what it gives became NaN or infinite"), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace lquant::quantize
