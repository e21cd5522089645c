#include "kernels/embedding.h"

#include "kernels/elementwise_testing.h"
#include "oracle/kernels_embedding.h"

namespace lquant::kernels {
namespace {

using namespace testing;

const std::vector<int> kIds = {4, 0, 4, 10, 4, 3};  // 4 thrice, the first row and the last

mx::array ids_array(const std::vector<int>& ids = kIds) { return mx::array(ids.data(), {2, static_cast<int>(ids.size()) / 2}, mx::int32); }

Values magnitudes(Values v) {
  for (auto& x : v) x = std::abs(x);
  return v;
}

Values times(Values v, double factor) {
  for (auto& x : v) x *= factor;
  return v;
}

TEST(Embedding, MatchesOracle) {
  for (auto dtype : kDtypes) {
    for (int width : {1, 7, 63, 65, 576}) {
      const auto table = normal({11, width}, dtype, 1);
      const auto want = oracle::rows(kIds, doubles(table), width);
      const auto got = embedding(ids_array(), table);
      EXPECT_EQ(got.shape(), (mx::Shape{2, 3, width}));
      expect_close(got, want, Values(want.size(), 0.0), "rows are copied");
      // The multiplier is rounded to the table's dtype, then the product.
      const auto scaled = times(want, 11.3);
      expect_close(embedding(ids_array(), table, 11.3f), scaled, times(magnitudes(scaled), 2.01 * unit(dtype)), "times 11.3");
    }
  }
}

// f32 sums of at most three cotangents (two roundings), after one product in the cotangent's dtype with a multiplier of two bits.
TEST(Embedding, GradientAddsRepeatedIds) {
  for (auto dtype : kDtypes) {
    for (int width : {1, 7, 65, 576}) {
      const auto table = normal({11, width}, dtype, 1), g = normal({2, 3, width}, dtype, 2);
      for (float multiplier : {1.0f, 1.5f}) {
        const auto got = mx::vjp([&](const mx::array& t) { return embedding(ids_array(), t, multiplier); }, table, g).second;
        EXPECT_EQ(got.dtype(), mx::float32);
        const auto terms = times(doubles(g), multiplier);
        const auto want = oracle::add_rows(kIds, terms, 11, width);
        const double product = multiplier == 1 ? 0 : unit(dtype);
        expect_close(got, want, times(oracle::add_rows(kIds, magnitudes(terms), 11, width), (product + 2 * kF32) * 1.01), "gradient");
      }
    }
  }
}

TEST(Embedding, RefusesIdsOutsideTheTable) {
  for (auto dtype : kDtypes) {
    const auto table = normal({11, 8}, dtype, 1);
    for (int bad : {-1, 11, 1 << 30}) EXPECT_THROW(mx::eval(embedding(ids_array({0, bad}), table)), std::out_of_range) << bad;
  }
  EXPECT_THROW(embedding(mx::zeros({2}, mx::int64), normal({11, 8}, mx::float32, 1)), std::invalid_argument);
  const auto table = normal({11, 64}, mx::float32, 1);
  const auto packed = mx::quantize(table, 32, 4);
  EXPECT_THROW(mx::eval(embedding_affine(ids_array({0, 11}), packed[0], packed[1], packed[2], 4, 32, mx::float32)), std::out_of_range);
}

TEST(EmbeddingAffine, EqualsMlxBitForBit) {
  for (auto dtype : kDtypes) {
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      for (int group : {32, 64, 128}) {
        const auto packed = mx::quantize(normal({11, 384}, dtype, bits), group, bits);
        const auto want = mx::take(mx::dequantize(packed[0], packed[1], packed[2], group, bits), ids_array(), 0);
        EXPECT_TRUE(same_bytes(embedding_affine(ids_array(), packed[0], packed[1], packed[2], bits, group, dtype), want)) << bits << " " << group;
        const auto doubled = mx::multiply(want, mx::array(2.0f, dtype));  // exact
        EXPECT_TRUE(same_bytes(embedding_affine(ids_array(), packed[0], packed[1], packed[2], bits, group, dtype, 2), doubled));
      }
    }
  }
}

// The table is linear in scales and biases: the gradient of a scale is Σ cotangent·code over its group and the ids that name its row.
TEST(EmbeddingAffine, GradientsMatchOracle) {
  const int width = 128, group = 32, groups = width / group;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    const auto packed = mx::quantize(normal({11, width}, mx::float32, bits), group, bits);
    const auto codes =
        doubles(mx::dequantize(packed[0], mx::ones_like(packed[1]), mx::zeros_like(packed[2]), group, bits));  // the numbers themselves
    const auto g = normal({2, 3, width}, mx::float32, 9);
    const auto gd = doubles(g), q = oracle::rows(kIds, codes, width);
    Values scale_rows(kIds.size() * groups), bias_rows(kIds.size() * groups), scale_terms(scale_rows.size()), bias_terms(scale_rows.size());
    for (std::size_t i = 0; i < gd.size(); ++i) {
      scale_rows[i / group] += gd[i] * q[i];
      scale_terms[i / group] += std::abs(gd[i] * q[i]);
      bias_rows[i / group] += gd[i];
      bias_terms[i / group] += std::abs(gd[i]);
    }
    const auto got = mx::vjp(
        [&](const std::vector<mx::array>& in) {
          return std::vector{embedding_affine(ids_array(), packed[0], in[0], in[1], bits, group, mx::float32)};
        },
        {packed[1], packed[2]}, {g});
    const double units = (group + 3) * kF32;  // a sum of `group` products, then of three rows
    expect_close(got.second[0], oracle::add_rows(kIds, scale_rows, 11, groups), times(oracle::add_rows(kIds, scale_terms, 11, groups), units),
                 "scales");
    expect_close(got.second[1], oracle::add_rows(kIds, bias_rows, 11, groups), times(oracle::add_rows(kIds, bias_terms, 11, groups), units),
                 "biases");
    EXPECT_EQ(got.second[0].dtype(), mx::float32);
  }
}

TEST(Embedding, DoesNotDependOnThreads) {
  std::vector<int> ids(400);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int>(i * i % 97);
  const auto table = normal({97, 577}, mx::bfloat16, 1), g = normal({2, 200, 577}, mx::bfloat16, 2);
  expect_thread_independent([&] {
    const auto both = mx::vjp([&](const mx::array& t) { return embedding(ids_array(ids), t, 3); }, table, g);
    return std::vector{both.first, both.second};
  });
}

}  // namespace
}  // namespace lquant::kernels
