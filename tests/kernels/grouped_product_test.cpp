// On a GPU: products by expert, forward and backward, against double precision. Their text runs on a CPU in grouped_text_test.cpp.
#include "kernels/grouped_product.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <vector>

#include "kernels/elementwise_testing.h"
#include "kernels/linear.h"
#include "oracle/kernels_linear.h"

namespace lquant::kernels {
namespace {

using namespace oracle::linear;
using testing::normal;
using Arrays = std::vector<mx::array>;

/// A sum of `length` products in f32 is off by length · 2^-24 of its terms' sizes, and rounded once more (f16's smallest step is 2^-24).
void expect_product(const mx::array& got, const Matrix& a, const Matrix& b, const char* what) {
  const auto values = matrix(got), want = multiply(a, b), size = multiply(absolute(a), absolute(b));
  const double half = got.dtype() == mx::bfloat16 ? 0x1p-8 : 0x1p-11;
  ASSERT_EQ(values.values.size(), want.values.size());
  for (std::size_t i = 0; i < want.values.size(); ++i)
    ASSERT_NEAR(values.values[i], want.values[i], half * std::abs(want.values[i]) + (a.columns + 1) * 0x1p-24 * size.values[i] + 0x1p-25)
        << what << ", element " << i;
}

TEST(GroupedProduct, ValuesAndGradients) {
  if (!fused_grouped_product(mx::zeros({1, 8, 8}, mx::bfloat16))) GTEST_SKIP() << "the default device has no such kernels";
  // Experts with several tiles of rows, with none, with one row; results of several tiles and of parts of them.
  const std::vector<int> at{0, 5, 5, 525, 526, 560};
  const int experts = 5, all = 560;
  for (const auto dtype : {mx::bfloat16, mx::float16})
    for (const auto& [n, k] : {std::pair{24, 40}, std::pair{200, 136}, std::pair{8, 512}}) {
      const auto x = normal({all, k}, dtype, 1), w = normal({experts, n, k}, dtype, 2), b = normal({experts, n}, dtype, 3),
                 dy = normal({all, n}, dtype, 4);
      const mx::array offsets(at.data(), {experts + 1}, mx::int32);
      const auto plain = [&](const Arrays& in) { return Arrays{grouped_linear(in[0], in[1], std::nullopt, offsets)}; };
      const auto [y, gradients] = mx::vjp(plain, {x, w}, {dy});
      const auto biased = [&](const Arrays& in) { return Arrays{grouped_linear(x, w, in[0], offsets)}; };
      const auto [z, of_bias] = mx::vjp(biased, {b}, {dy});
      for (int e = 0; e < experts; ++e) {
        const auto own = [&](const mx::array& rows) { return mx::slice(rows, {at[e], 0}, {at[e + 1], rows.shape(1)}); };
        const auto matrix_of = [&](const mx::array& stack) { return mx::slice(stack, {e, 0, 0}, {e + 1, stack.shape(1), stack.shape(2)}); };
        const auto xe = matrix(own(x)), we = matrix(mx::reshape(matrix_of(w), {n, k})), de = matrix(own(dy));
        expect_product(own(y[0]), xe, transposed(we), "y");
        expect_product(own(gradients[0]), de, we, "dx");
        expect_product(matrix_of(gradients[1]), transposed(de), xe, "dw");
        // With the bias as one product more.
        Matrix longer{xe.rows, k + 1, {}}, higher{k + 1, n, transposed(we).values};
        for (std::int64_t r = 0; r < xe.rows; ++r) {
          for (int c = 0; c < k; ++c) longer.values.push_back(xe(r, c));
          longer.values.push_back(1);
        }
        const auto be = matrix(mx::slice(b, {e, 0}, {e + 1, n}));
        higher.values.insert(higher.values.end(), be.values.begin(), be.values.end());
        expect_product(own(z[0]), longer, higher, "y with a bias");
        expect_product(mx::slice(of_bias[0], {e, 0}, {e + 1, n}), Matrix{1, de.rows, std::vector<double>(de.rows, 1.0)}, de, "db");
      }
    }
}

}  // namespace
}  // namespace lquant::kernels
