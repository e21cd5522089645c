#include "quantize/sensitivity.h"

#include <gtest/gtest.h>

#include <mlx/mlx.h>
#include <algorithm>

#include <cmath>

#include "base/error.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "kernels/primitive.h"
#include "oracle/model_random.h"

namespace lquant::quantize {
namespace {

/// A small model whose weights are numbers of a dtype, two rows of tokens and what comes after them. All it computes itself is in f32.
struct Small {
  model::ModelSpec spec;
  model::Tensors tensors;
  mx::array ids = mx::array(0), targets = mx::array(0), mask = mx::array(0);

  explicit Small(const std::string& type = "llama", std::uint64_t seed = 3, mx::Dtype dtype = mx::float32)
      : spec(model::spec_from_config(oracle::tiny_config(type))) {
    tensors = model::cast(model::cast(oracle::random_tensors(spec, seed), dtype), mx::float32);
    const int length = 7;
    std::vector<std::int32_t> a, b;
    std::vector<float> m;
    for (int i = 0; i < 2 * length; ++i) {
      a.push_back((7 * i + 3) % spec.vocab);
      b.push_back((5 * i + 11) % spec.vocab);
      m.push_back(i % length == length - 1 ? 0.0f : 1.0f);  // nothing comes after a row's last token
    }
    ids = mx::array(a.data(), {2, length}, mx::int32);
    targets = mx::array(b.data(), {2, length}, mx::int32);
    mask = mx::array(m.data(), {2, length}, mx::float32);
  }

  /// Σ mask · −log p(target) by log-softmax of plain logits.
  mx::array loss(const model::Tensors& with) const {
    const auto logits = model::forward(spec, with, {}, ids, mx::float32);
    const auto logp = mx::subtract(logits, mx::logsumexp(logits, -1, true));
    const auto chosen = mx::squeeze(mx::take_along_axis(logp, mx::expand_dims(targets, -1), -1), -1);
    return mx::negative(mx::sum(mx::multiply(chosen, mask)));
  }

  /// The gradients of all linears by MLX through the whole model at once, by path.
  std::map<std::string, mx::array> whole() const {
    std::vector<mx::array> weights;
    for (const auto* linear : spec.linears()) weights.push_back(tensors.at(linear->path + ".weight"));
    const auto run = [&](const std::vector<mx::array>& in) {
      auto with = tensors;
      for (std::size_t i = 0; i < in.size(); ++i) with.insert_or_assign(spec.linears()[i]->path + ".weight", in[i]);
      return std::vector<mx::array>{loss(with)};
    };
    const auto gradients = mx::vjp(run, weights, {mx::array(1.0f)}).second;
    std::map<std::string, mx::array> all;
    for (std::size_t i = 0; i < gradients.size(); ++i) all.insert({spec.linears()[i]->path, gradients[i]});
    return all;
  }
};

double largest(const mx::array& x) { return mx::max(mx::abs(x)).item<float>(); }

/// Both sides make the same sums of some hundred f32 terms in other orders, through a few layers: 1e-4 of the largest entry is a hundred times their
/// rounding (100 terms · 6e-8 · a few layers), and a wrong term would be of the size of the entry itself.
void expect_alike(const mx::array& got, const mx::array& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  EXPECT_LT(largest(mx::subtract(got, want)), 1e-4 * largest(want) + 1e-30) << what;
}

class SensitivityTest : public ::testing::TestWithParam<std::pair<const char*, mx::Dtype>> {};

INSTANTIATE_TEST_SUITE_P(Models, SensitivityTest, ::testing::ValuesIn([] {
                           std::vector<std::pair<const char*, mx::Dtype>> all;
                           for (const char* type : {"llama", "qwen3", "gemma2", "phi3", "qwen3_moe", "iquestloopcoder"})
                             for (const auto dtype : oracle::kDtypes) all.push_back({type, dtype});
                           return all;
                         }()),
                         [](const auto& info) { return std::string(info.param.first) + "_" + oracle::name_of(info.param.second); });

TEST_P(SensitivityTest, GradientsBlockByBlockAreThoseOfTheWholeModel) {
  const auto [type, dtype] = GetParam();
  const Small m(type, 3, dtype);
  const auto tensors = model::cast(m.tensors, dtype);
  const auto visits = m.spec.visits();
  const int blocks = static_cast<int>(visits.size());
  // A later run of a block looks at two passes' keys: a second attention, a gate and a mix are some five roundings beside a block's ten.
  const auto later = std::count_if(visits.begin(), visits.end(), [](const auto& visit) { return visit.pass > 0; });
  const int depth = blocks + static_cast<int>(later + 1) / 2;
  const auto expect_alike = [dtype = dtype, depth](const mx::array& got, const mx::array& want, const std::string& what) {
    if (dtype == mx::float32) return quantize::expect_alike(got, want, what);
    // The backward pass leaves about twice as many tensors in 16 bits as the forward pass.
    ASSERT_EQ(got.shape(), want.shape()) << what;
    EXPECT_LT(oracle::distance_between(got, want), oracle::rounding_of(3 * depth, dtype)) << what;
  };
  // A loss a million times smaller has gradients below all that f16 holds; they come out as exactly.
  for (const float weight : {1.0f, std::ldexp(1.0f, -20)}) {
    SCOPED_TRACE(weight);
    std::vector<mx::array> entering{model::embed(m.spec, tensors, {}, m.ids, dtype)};
    for (const auto& visit : visits) entering.push_back(model::block(m.spec, visit, tensors, {}, entering.back()));
    auto scaled = m;
    scaled.mask = mx::multiply(m.mask, mx::array(weight));
    const auto want = scaled.whole();
    const auto top = head_gradients(m.spec, tensors, entering.back(), m.targets, scaled.mask);
    auto loss = top.loss, want_loss = scaled.loss(m.tensors);
    const double exact = want_loss.item<float>(), part = dtype == mx::float32 ? 1e-4 : oracle::rounding_of(blocks, dtype);
    EXPECT_NEAR(loss.item<float>(), exact, part * std::abs(exact)) << type;
    if (m.spec.head) expect_alike(top.weight, want.at(m.spec.head->path), std::string(type) + " head");
    auto cotangent = top.input;
    std::map<std::string, mx::array> sums;  // over the runs of a block
    for (int i = blocks - 1; i >= 0; --i) {
      const auto g = through_block(m.spec, visits[i], tensors, entering[i], cotangent, {});
      for (const auto& [path, gradient] : g.weights) {
        const auto [sum, first] = sums.insert({path, gradient});
        if (!first) sum->second = mx::add(sum->second, gradient);
      }
      cotangent = g.input;
    }
    for (const auto& block : m.spec.blocks)
      for (const auto* linear : block.linears()) expect_alike(sums.at(linear->path), want.at(linear->path), std::string(type) + " " + linear->path);
    if (m.spec.tied()) {
      // Of a tied embedding both uses have their part: the rows looked up, by the gradient of what they gave, and the head's.
      const auto flat = mx::reshape(mx::astype(model::residual_of(m.spec, cotangent), mx::float32), {-1, m.spec.hidden});
      const auto looked = mx::scatter_add(mx::zeros({m.spec.vocab, m.spec.hidden}), mx::flatten(m.ids),
                                          mx::expand_dims(mx::multiply(flat, mx::array(m.spec.embedding_multiplier)), 1), 0);
      expect_alike(mx::add(looked, top.weight), want.at(m.spec.embedding.path), std::string(type) + " embedding");
    }
  }
}

TEST(FisherStore, AddsSquaresOfParts) {
  FisherStore store;
  const auto a = mx::array({1.0f, -2.0f, 3.0f, 0.5f}, {2, 2}), b = mx::array({0.5f, 1.0f, -1.0f, 2.0f}, {2, 2});
  store.add("w", a);
  store.add("w", mx::astype(b, mx::bfloat16));
  store.add("w", mx::astype(b, mx::float16));
  EXPECT_TRUE(mx::array_equal(store.of("w"), mx::add(mx::square(a), mx::multiply(mx::square(b), mx::array(2.0f)))).item<bool>());
  EXPECT_THROW(store.of("v"), std::invalid_argument);
}

/// A product by experts, one of which gets no row, and the gradient of its weight for a cotangent: lazy.
struct Grouped {
  mx::array x, weight, cotangent;
  mx::array offsets{{0, 5, 5, 12}, {4}, mx::int32};
  Grouped(int rows, unsigned seed)
      : x(mx::random::normal({12, 64}, mx::float32, mx::random::key(seed))),
        weight(mx::random::normal({3, rows, 64}, mx::float32, mx::random::key(seed + 1))),
        cotangent(mx::random::normal({12, rows}, mx::float32, mx::random::key(seed + 2))) {}
  mx::array gradient() const {
    const auto run = [this](const std::vector<mx::array>& in) { return std::vector{kernels::grouped_linear(x, in[0], std::nullopt, offsets)}; };
    return mx::vjp(run, {weight}, {cotangent}).second[0];
  }
};

TEST(FisherStore, OfStacksSumsAreKept) {
  if (!kernels::cpu_kernels()) GTEST_SKIP() << "stacks are summed by the CPU's kernels";
  for (const int rows : {48, 300}) {  // all of them judged; one in five, and more than are squared at once
    const int step = (rows + 63) / 64;
    FisherStore store;
    auto whole = mx::zeros({3, rows, 64});
    for (const unsigned seed : {1u, 11u}) {
      const Grouped product(rows, seed);
      const auto lazy = kernels::grouped_gradient(product.gradient());
      ASSERT_TRUE(lazy);
      store.add("w", *lazy);
      auto gradient = product.gradient();
      gradient.eval();
      EXPECT_FALSE(kernels::grouped_gradient(gradient));
      whole = mx::add(whole, mx::square(gradient));
    }
    const auto* sums = store.stack("w");
    ASSERT_TRUE(sums);
    EXPECT_FALSE(store.has("w"));
    expect_alike(sums->columns, mx::sum(whole, 1), "columns");
    expect_alike(sums->groups, mx::sum(mx::reshape(whole, {3, rows, 2, 32}), 3), "groups");
    expect_alike(sums->rows, mx::slice(whole, {0, 0, 0}, {3, rows, 64}, {1, step, 1}), "rows");
    store.clear();
    EXPECT_EQ(store.stack("w"), nullptr);
  }
  EXPECT_FALSE(kernels::grouped_gradient(mx::add(Grouped(8, 1).gradient(), mx::array(1.0f))));
}

TEST(ExpectedKl, OfAStackIsThatOfItsWholeDiagonal) {
  if (!kernels::cpu_kernels()) GTEST_SKIP() << "stacks are summed by the CPU's kernels";
  const std::vector<codec::Format> formats{{codec::Mode::affine, 2, 64}, {codec::Mode::affine, 3, 32}, {codec::Mode::affine, 5, 64}};
  for (const int rows : {48, 300}) {
    const Grouped product(rows, 21);
    FisherStore store;
    store.add("w", *kernels::grouped_gradient(product.gradient()));
    const auto kl = expected_kl("w", product.weight, *store.stack("w"), 10, formats);
    const auto whole = expected_kl("w", product.weight, mx::square(product.gradient()), 10, formats);
    // All rows are judged: the same sums in another order. Else the share that judged rows have of all weights' cost is known with errors even in
    // each group: of 300 · 64 weights with a row each, whose squared errors have a coefficient of variation of about one and whose Fisher diagonals,
    // products of two chi squares, one of about three, both sums are known to 3 / √(60 · 64 · 2), the judged rows of the two experts that have any.
    const double part = rows == 48 ? 1e-5 : 3 * 3 / std::sqrt(60 * 64 * 2.0);
    for (std::size_t i = 0; i < formats.size(); ++i) EXPECT_NEAR(kl[i], whole[i], part * whole[i]) << rows << " " << i;
  }
}

TEST(FisherStore, RowsLookedUpTwiceAddUpBeforeTheyAreSquared) {
  FisherStore store;
  const auto ids = mx::array({3, 1, 3}, {1, 3}, mx::int32);
  const auto g = mx::array({1.0f, 2.0f, 10.0f, 20.0f, 0.5f, -5.0f}, {1, 3, 2});
  store.add_lookups("e", 5, ids, g);
  store.add_lookups("e", 5, mx::array({1}, {1, 1}, mx::int32), mx::array({1.0f, 1.0f}, {1, 1, 2}));
  const auto want = mx::array({0.0f, 0.0f, 101.0f, 401.0f, 0.0f, 0.0f, 2.25f, 9.0f, 0.0f, 0.0f}, {5, 2});
  EXPECT_TRUE(mx::array_equal(store.of("e"), want).item<bool>());
}

TEST(ExpectedKl, IsHalfTheWeightedErrorOfTheSearchedRanges) {
  mx::random::seed(5);
  const auto w = mx::random::normal({48, 128}), f = mx::square(mx::random::normal({48, 128}));
  const std::vector<codec::Format> formats{{codec::Mode::affine, 2, 64}, {codec::Mode::affine, 4, 32}, {codec::Mode::affine, 8, 128}};
  const auto kl = expected_kl("w", w, f, 10, formats);
  ASSERT_EQ(kl.size(), 3u);
  for (std::size_t i = 0; i < formats.size(); ++i) {
    const auto packed = codec::range_search(w, formats[i], mx::mean(f, 0)).packed;
    const auto e = mx::subtract(w, codec::dequantize(packed, formats[i], mx::float32));
    const double want = 0.5 * mx::sum(mx::multiply(f, mx::square(e))).item<float>() / 10;
    EXPECT_NEAR(kl[i], want, 1e-5 * want) << i;  // f32 against double sums of 6,144 terms
  }
  EXPECT_GT(kl[0], kl[1]);
  EXPECT_GT(kl[1], kl[2]);
}

TEST(ExpectedKl, OfLongMatricesLooksAtSomeRowsAndSpeaksForAll) {
  mx::random::seed(6);
  // Rows that matter more and more, as those of an embedding do: a mean over a few of them alone would be far off.
  const auto weight_of_row = mx::exp(mx::multiply(mx::random::normal({2000, 1}), mx::array(1.5f)));
  const auto w = mx::random::normal({2000, 64}), f = mx::multiply(mx::square(mx::random::normal({2000, 64})), weight_of_row);
  const std::vector<codec::Format> formats{{codec::Mode::affine, 2, 64}, {codec::Mode::affine, 3, 32}, {codec::Mode::affine, 5, 64}};
  const auto kl = expected_kl("w", w, f, 10, formats);
  for (std::size_t i = 0; i < formats.size(); ++i) {
    const auto packed = codec::range_search(w, formats[i], mx::mean(f, 0)).packed;
    const double want = 0.5 * codec::weighted_error(w, packed, formats[i], f) / 10;
    // Sixty rows of 64 weights, whose weights have a coefficient of variation of three: the ratio between two formats is known to 3 / √3840.
    EXPECT_NEAR(kl[i], want, 3 * (3 / std::sqrt(3840.0)) * want) << i;
  }
}

TEST(ExpectedKl, PredictsTheDivergenceOfASmallModel) {
  // For tokens drawn from the model itself the Fisher information is the divergence's curvature. Here it is summed exactly: over all tokens of the
  // vocabulary as targets, each by its probability, at the last place of a row.
  Small m("llama", 9);
  const auto logits = model::forward(m.spec, m.tensors, {}, m.ids, mx::float32);
  const auto p = mx::softmax(mx::slice(logits, {0, 6, 0}, {2, 7, m.spec.vocab}), -1, true);
  const auto path = m.spec.blocks[0].linears().back()->path;
  mx::array fisher = mx::zeros(m.tensors.at(path + ".weight").shape());
  for (int row = 0; row < 2; ++row)
    for (int token = 0; token < m.spec.vocab; ++token) {
      Small one = m;
      one.ids = mx::slice(m.ids, {row, 0}, {row + 1, 7});
      one.targets = mx::full({1, 7}, token, mx::int32);
      one.mask = mx::array({0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 1.0f}, {1, 7});
      const auto g = one.whole().at(path);
      fisher = mx::add(fisher, mx::multiply(mx::square(g), mx::slice(p, {row, 0, token}, {row + 1, 1, token + 1})));
      fisher = mx::reshape(fisher, g.shape());
      fisher.eval();
    }
  // Random errors of one variance: the mean divergence over many draws is ½ Σ F σ².
  const double sigma = 3e-3;
  double measured = 0;
  const int draws = 64;
  for (int d = 0; d < draws; ++d) {
    auto with = m.tensors;
    const auto& w = m.tensors.at(path + ".weight");
    with.insert_or_assign(path + ".weight", mx::add(w, mx::multiply(mx::random::normal(w.shape(), mx::float32, mx::random::key(d)),
                                                                    mx::array(static_cast<float>(sigma)))));
    const auto q = mx::softmax(mx::slice(model::forward(m.spec, with, {}, m.ids, mx::float32), {0, 6, 0}, {2, 7, m.spec.vocab}), -1, true);
    measured += mx::sum(mx::multiply(p, mx::subtract(mx::log(p), mx::log(q)))).item<float>() / draws;
  }
  const double predicted = 0.5 * mx::sum(fisher).item<float>() * sigma * sigma;
  // Each draw is a sum of squares of some dozen directions: it scatters by a third about its mean, the mean of 64 by a twentieth. What is above
  // second order, and f32 divergences of some 1e-5 from probabilities good to 1e-7, add a few in a hundred.
  EXPECT_NEAR(measured / predicted, 1, 0.25);
}

TEST(ExpectedKl, RefusesWhatIsNotFinite) {
  const auto w = mx::ones({2, 64}), bad = mx::full({2, 64}, NAN);
  const std::vector<codec::Format> formats{{codec::Mode::affine, 4, 64}};
  EXPECT_THROW(expected_kl("w", bad, w, 1, formats), Error);
  EXPECT_THROW(expected_kl("w", w, bad, 1, formats), Error);
}

}  // namespace
}  // namespace lquant::quantize
