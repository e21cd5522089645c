// The text of the codec's CUDA kernels, run thread by thread on the CPU (kernels/cuda_on_host.h) and held to the loops that CPUs use.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <random>
#include <vector>

#include "codec/feedback_testing.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "kernels/cuda_text_testing.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-function"
// clang-format off: numbers.cu stands first, as it does before every kernel
namespace of_search {
#include "kernels/numbers.cu"
#include "codec/range_search.cu"
}  // namespace of_search
namespace of_feedback {
#include "kernels/numbers.cu"
#include "codec/feedback.cu"
}  // namespace of_feedback
namespace of_triangles {
#include "kernels/numbers.cu"
#include "kernels/triangle.cu"
}  // namespace of_triangles
// clang-format on
#pragma GCC diagnostic pop

namespace lquant::codec {
namespace {

using cuda_on_host::floats, cuda_on_host::launch, cuda_on_host::values;

class CudaText : public cuda_on_host::OnCpu {};

constexpr double kEps = 0x1p-24;  // of one rounding in f32
constexpr int kThreads = 64;

/// Rows of different kinds: Gaussian, heavy-tailed, one-sided, constant, zero, one outlier.
std::vector<float> rows_of(int columns) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(3);
  std::vector<float> all;
  for (int row = 0; row < 6; ++row)
    for (int j = 0; j < columns; ++j) {
      const float x[] = {normal(random), heavy(random), std::abs(normal(random)), 0.7f, 0, j == 3 ? 50.0f : normal(random)};
      all.push_back(0.05f * x[row]);
    }
  return all;
}

template <class S>
mx::Dtype dtype_of() {
  return sizeof(S) == 4 ? mx::float32 : mx::bfloat16;
}
template <class S>
mx::array as_array(const std::vector<S>& x, const mx::Shape& shape) {
  if constexpr (sizeof(S) == 4)
    return mx::array(x.data(), shape, mx::float32);
  else
    return mx::view(mx::array(reinterpret_cast<const std::uint16_t*>(x.data()), shape, mx::uint16), mx::bfloat16);
}
template <class S>
std::vector<S> as_device(const mx::array& x) {
  const auto bits = floats(x);
  std::vector<S> all;
  for (const float b : bits) all.push_back(static_cast<S>(b));
  return all;
}

double by_sum(const std::vector<float>& x) {
  double sum = 0;
  for (const float e : x) sum += e;
  return sum;
}

template <class S, int group, int bits>
void search_equals() {
  SCOPED_TRACE(testing::Message() << bits << " bits, groups of " << group << ", scales of " << sizeof(S) << " bytes");
  const int columns = 2 * group, rows = 6, groups = rows * 2;
  const Format format{Mode::affine, bits, group};
  const auto w = as_device<S>(mx::array(rows_of(columns).data(), {rows, columns}, mx::float32));
  const auto weight = as_array(w, {rows, columns});
  auto importance = mx::exp(mx::random::normal({columns}, mx::float32, mx::random::key(5)));
  const auto h = floats(importance);
  std::vector<unsigned> codes(groups * group * bits / 32);
  std::vector<S> scales(groups), biases(groups);
  std::vector<float> plain(groups), found(groups);
  launch(2, kThreads, [&] {
    of_search::lquant::range_search<S, S>(w.data(), h.data(), group, bits, columns, rows, 0.25f, groups, codes.data(), scales.data(), biases.data(),
                                          plain.data(), found.data());
  });
  const Packed packed{mx::array(codes.data(), {rows, columns * bits / 32}, mx::uint32), as_array(scales, {rows, 2}), as_array(biases, {rows, 2})};
  const auto reference = range_search(weight, format, importance);
  // What it says of its errors is true: its f32 sums of groups carry one rounding each.
  const double error = weighted_error(weight, packed, format, importance);
  EXPECT_NEAR(by_sum(found), 0.25 * error, 2 * kEps * error);
  EXPECT_NEAR(by_sum(plain), 0.25 * reference.plain_error, 2 * kEps * reference.plain_error);
  // The same search but for the order of sums, whose rounding decides between candidates that are alike: each f32 sum of `group` terms errs by
  // group · 2⁻²⁴ of itself, and so may the choice at each of the 30 comparisons.
  EXPECT_NEAR(error, reference.error, 60 * group * kEps * reference.error);
  for (int i = 0; i < groups; ++i) EXPECT_LE(found[i], plain[i]);
  std::vector<unsigned> again(codes.size());
  launch(1, kThreads, [&] { of_search::lquant::nearest_codes<S, S>(w.data(), scales.data(), biases.data(), group, bits, groups, again.data()); });
  EXPECT_EQ(again, values<std::uint32_t>(requantize_codes(weight, packed.scales, *packed.biases, format)));
}

TEST_F(CudaText, RangeSearchFindsWhatTheCpuFinds) {
  using B = of_search::lquant::bf16;
  search_equals<float, 64, 4>();
  search_equals<float, 32, 2>();
  search_equals<B, 64, 3>();
  search_equals<B, 128, 5>();
  search_equals<B, 32, 8>();
  search_equals<B, 64, 2>();
}

TEST_F(CudaText, RangeSearchKeepsThePlainRuleWhereNothingCanBeJudged) {
  const int columns = 64;
  std::vector<float> w(3 * columns, 0.5f), h(columns, 0.0f);  // importance nothing; then a NaN and an infinite weight
  for (int j = 0; j < columns; ++j) w[j] = static_cast<float>(j);
  w[columns + 5] = std::nanf("");
  w[2 * columns + 5] = std::numeric_limits<float>::infinity();
  std::vector<unsigned> codes(3 * columns * 4 / 32);
  std::vector<float> scales(3), biases(3), plain(3), found(3);
  launch(1, 32, [&] {
    of_search::lquant::range_search<float, float>(w.data(), h.data(), 64, 4, columns, 3, 1, 3, codes.data(), scales.data(), biases.data(),
                                                  plain.data(), found.data());
  });
  const auto reference = quantize(mx::array(w.data(), {3, columns}, mx::float32), {Mode::affine, 4, 64});
  const auto reference_codes = values<std::uint32_t>(reference.codes);
  const auto reference_scales = floats(reference.scales);
  for (int row : {0, 1}) {  // of the third, dividing by an infinite scale leaves what the device makes of it
    EXPECT_EQ(scales[row], reference_scales[row]);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(codes[row * 8 + i], reference_codes[row * 8 + i]);
  }
}

/// The loops of feedback_cpu.cpp, given the same sums before a block, may differ where a sum lies as near to a border as its rounding; with these
/// seeds none does.
template <class S>
void feedback_equals(int bits) {
  constexpr int n = 64;
  const int rows = 9;
  const Format format{Mode::affine, bits, 32};
  const Problem p(rows, n, 17 + bits);
  const auto start = start_of(p, format, dtype_of<S>());
  const auto unit = p.unit();
  const auto group = natural(n, 32);
  const auto w = floats(p.w), inside = floats(unit);
  const std::vector<float> fed(w.size(), 0.0f);
  const auto scales = as_device<S>(start.scales), biases = as_device<S>(start.biases);
  std::vector<unsigned char> codes(w.size());
  std::vector<float> high(w.size()), low(w.size()), square(n * n);
  launch(2, 64, [&] {
    of_feedback::lquant::feedback<S, n>(square.data(), w.data(), fed.data(), inside.data(), scales.data(), biases.data(), group.data(),
                                        static_cast<float>((1 << bits) - 1), rows, 2, codes.data(), high.data(), low.data());
  });
  const auto expected = round_with_feedback(p.w, unit, start.scales, start.biases, group, format);
  EXPECT_EQ(codes, values<std::uint8_t>(expected));
  const auto ones = floats(values_of({expected, start.scales, start.biases}, format));
  for (std::size_t i = 0; i < w.size(); ++i) EXPECT_EQ(high[i] + low[i], w[i] - ones[i]);
}

TEST_F(CudaText, FeedbackGivesTheCodesOfTheCpu) {
  feedback_equals<float>(4);
  feedback_equals<of_feedback::lquant::bf16>(3);
}

TEST_F(CudaText, RefiningGroupsLowersTheErrorAsTheCpuDoes) {
  constexpr int n = 64, k = 192;
  const int rows = 5;
  const Format format{Mode::affine, 3, n};
  const Problem p(rows, k, 40);
  const auto start = start_of(p, format);
  const auto w = floats(p.w), hessian = floats(p.hessian), scales = floats(start.scales), biases = floats(start.biases);
  const auto codes = values<std::uint8_t>(start.codes);
  const auto errors = mx::subtract(p.w, values_of(start, format));
  const auto none = mx::zeros_like(errors);
  const auto parts = floats(mx::concatenate({errors, none, errors}, 1)), slopes = floats(mx::matmul(errors, p.hessian));
  std::vector<float> totals;
  for (int g = 0; g < k / n; ++g) totals.push_back(mx::sum(mx::slice(p.hessian, {g * n, g * n}, {(g + 1) * n, (g + 1) * n})).item<float>());
  std::vector<unsigned char> to(w.size());
  std::vector<float> to_parts(parts.size()), to_scales(scales.size()), to_biases(scales.size()), shared(of_feedback::lquant::refine_floats(n));
  launch(1, 128, [&] {
    of_feedback::lquant::refine<float, n>(shared.data(), w.data(), parts.data(), slopes.data(), hessian.data(), totals.data(), codes.data(),
                                          scales.data(), biases.data(), 0, k / n, 7, rows, k, to.data(), to_parts.data(), to_scales.data(),
                                          to_biases.data());
  });
  const Coded made{mx::array(to.data(), {rows, k}, mx::uint8), mx::array(to_scales.data(), {rows, k / n}, mx::float32),
                   mx::array(to_biases.data(), {rows, k / n}, mx::float32)};
  const double before = error_of(p, start, format), after = error_of(p, made, format),
               reference = error_of(p, refine(p.w, p.hessian, start, format, 1), format);
  EXPECT_LT(after, before);
  // Sums in another order decide a few codes otherwise, each worth a small part of the error.
  EXPECT_NEAR(after, reference, 0.02 * reference);
  const auto left = floats(mx::subtract(p.w, values_of(made, format)));
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < k; ++c) {
      const float* of_row = to_parts.data() + r * 3 * k + c;
      EXPECT_NEAR(of_row[0] + of_row[k], left[r * k + c], 4 * kEps * (1 + std::abs(w[r * k + c])));
      EXPECT_EQ(of_row[0], of_row[2 * k]);
    }
}

TEST_F(CudaText, TrianglesAreInverted) {
  const int k = 64;
  const auto upper = mx::add(mx::triu(mx::random::normal({k, k}, mx::float32, mx::random::key(3))), mx::multiply(mx::eye(k), mx::array(6.0f)));
  const auto r = floats(upper);
  std::vector<float> out(2 * 32 * 32);
  launch(2, 32, [&] { of_triangles::lquant::invert_triangles(r.data(), k, out.data()); });
  for (int t = 0; t < 2; ++t)
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 32; ++j) {
        double sum = 0, size = 0;
        for (int l = 0; l < 32; ++l) {
          const double term = double(r[(32 * t + i) * k + 32 * t + l]) * out[(t * 32 + l) * 32 + j];
          sum += term, size += std::abs(term);
        }
        // Substitution solves a system whose entries are off by 32 roundings (Higham, theorem 8.5).
        EXPECT_NEAR(sum, i == j, 33 * kEps * size) << t << ": " << i << ", " << j;
      }
}

}  // namespace
}  // namespace lquant::codec
