// The CUDA kernels against a reference in double and against the CPU's kernels. Sums in f32 come in another order there, so a weight that lies
// between two codes as closely as those sums err may get the other one, and all that follows it in its row may then differ: what is compared is each
// decision for itself (given those before it), the rows in which none was that close, and the errors.
#include "codec/feedback_gpu.h"

#include <gtest/gtest.h>
#include <mlx/backend/cuda/cuda.h>

#include <algorithm>

#include "codec/feedback_testing.h"
#include "kernels/precise_product.h"

namespace lquant::codec {
namespace {

const double u = std::ldexp(1.0, -24);

#define NEED_CUDA() \
  if (!mx::cu::is_available()) GTEST_SKIP() << "needs an NVIDIA GPU and MLX for CUDA"

class On {
 public:
  explicit On(mx::Device device) : before_(mx::default_device()) { mx::set_default_device(device); }
  ~On() { mx::set_default_device(before_); }
  On(const On&) = delete;
  On& operator=(const On&) = delete;

 private:
  mx::Device before_;
};

oracle::Matrix magnitude(oracle::Matrix x) {
  for (auto& row : x)
    for (auto& value : row) value = std::abs(value);
  return x;
}

struct Case {
  mx::Dtype dtype;
  int bits, group, k, rows;
  bool permuted;
};

std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  const auto& c = info.param;
  const auto dtype = c.dtype == mx::float32 ? "f32" : c.dtype == mx::bfloat16 ? "bf16" : "f16";
  return std::string(dtype) + "b" + std::to_string(c.bits) + "g" + std::to_string(c.group) + "k" + std::to_string(c.k) + "n" +
         std::to_string(c.rows) + (c.permuted ? "permuted" : "");
}

/// A problem made on the CPU, its columns in the order in which they are visited, with each one's group.
struct GpuProblem {
  explicit GpuProblem(const Case& c)
      : on(mx::Device::cpu), format{Mode::affine, c.bits, c.group}, p(c.rows, c.k, 31 * c.bits + c.group), start(start_of(p, format, c.dtype)) {
    std::vector<int> order(c.k);
    for (int j = 0; j < c.k; ++j) order[j] = c.permuted ? (37 * j + 5) % c.k : j, group.push_back(order[j] / c.group);
    const auto indices = mx::array(order.data(), {c.k}, mx::int32);
    visited = p;
    visited->w = mx::take(p.w, indices, 1);
    visited->hessian = mx::take(mx::take(p.hessian, indices, 0), indices, 1);
    unit = visited->unit();
    mx::eval(visited->w, *unit, start.codes, start.scales, start.biases);
  }
  /// What codes [rows, K] in the visiting order stand for.
  oracle::Matrix values(const mx::array& codes) const {
    const auto index = mx::array(group.data(), {static_cast<int>(group.size())}, mx::int32);
    const auto q = mx::astype(codes, start.scales.dtype());
    return as_matrix(mx::add(mx::multiply(q, mx::take(start.scales, index, 1)), mx::take(start.biases, index, 1)));
  }
  On on;
  Format format;
  Problem p;
  Coded start;
  std::vector<int> group;
  std::optional<Problem> visited;
  std::optional<mx::array> unit;
};

std::size_t rows_that_differ(const mx::array& a, const mx::array& b) {
  const auto x = as_matrix(a), y = as_matrix(b);
  std::size_t count = 0;
  for (std::size_t r = 0; r < x.size(); ++r) count += x[r] != y[r];
  return count;
}

class FeedbackGpuTest : public ::testing::TestWithParam<Case> {};

TEST_P(FeedbackGpuTest, EveryCodeIsTheNearest) {
  NEED_CUDA();
  const GpuProblem g(GetParam());
  const auto solve = [&] { return round_with_feedback(g.visited->w, *g.unit, g.start.scales, g.start.biases, g.group, g.format); };
  const auto found = [&] {
    const On gpu(mx::Device::gpu);
    return solve();
  }();
  const auto codes = as_matrix(found), w = as_matrix(g.visited->w), s = as_matrix(g.start.scales), b = as_matrix(g.start.biases);
  const auto [aim, taken_up] = oracle::aims_of(w, as_matrix(*g.unit), g.values(found));
  const int top = (1 << g.format.bits) - 1, k = g.format.group_size * static_cast<int>(s[0].size());
  for (std::size_t r = 0; r < codes.size(); ++r) {
    for (int j = 0; j < k; ++j) {
      const double scale = s[r][g.group[j]], bias = b[r][g.group[j]], q = codes[r][j], at = (aim[r][j] - bias) / scale;
      // A sum of K products errs by at most K·u of their magnitudes; the parts of a split factor leave out 4u; the weight, the bias and the division
      // bring a few u of themselves.
      const double slack = ((k + 8) * u * taken_up[r][j] + 4 * u * (std::abs(w[r][j]) + std::abs(bias) + taken_up[r][j])) / std::abs(scale);
      if (q > 0) ASSERT_GE(at, q - 0.5 - slack) << "row " << r << ", column " << j;
      if (q < top) ASSERT_LE(at, q + 0.5 + slack) << "row " << r << ", column " << j;
    }
  }
  // The chance that one of a row's K weights lies that close to a border is of the order of K · √K · u · |taken up| / scale, far below one in eight.
  EXPECT_LE(rows_that_differ(found, solve()), codes.size() / 8);
}

TEST_P(FeedbackGpuTest, RefinesAsTheCpuDoes) {
  NEED_CUDA();
  const GpuProblem g(GetParam());
  const auto at_cpu = refine(g.p.w, g.p.hessian, g.start, g.format, 2);
  const auto at_gpu = [&] {
    const On gpu(mx::Device::gpu);
    return refine(g.p.w, g.p.hessian, g.start, g.format, 2);
  }();
  EXPECT_EQ(at_gpu.scales.dtype(), g.start.scales.dtype());
  EXPECT_EQ(at_gpu.biases.dtype(), g.start.scales.dtype());
  EXPECT_LE(rows_that_differ(at_gpu.codes, at_cpu.codes), g.p.w.shape(0) / 8);
  const double start = error_of(g.p, g.start, g.format), cpu = error_of(g.p, at_cpu, g.format), gpu = error_of(g.p, at_gpu, g.format);
  EXPECT_LT(gpu, start);
  // A close call, decided otherwise, leads to another optimum nearby in that row alone.
  EXPECT_NEAR(gpu, cpu, 0.01 * cpu);
}

TEST_P(FeedbackGpuTest, ValuesAreTheCpus) {
  NEED_CUDA();
  const GpuProblem g(GetParam());
  const auto here = as_matrix(values_of(g.start, g.format));
  const On gpu(mx::Device::gpu);
  EXPECT_EQ(as_matrix(values_of(g.start, g.format)), here);
}

// All dtypes with all group sizes; rows that fill no warp, no block or one just so; a last block of 32, 64, 96 and 128 columns.
INSTANTIATE_TEST_SUITE_P(Cases, FeedbackGpuTest,
                         ::testing::Values(Case{mx::float32, 2, 32, 160, 37, false}, Case{mx::float32, 3, 64, 192, 1, true},
                                           Case{mx::float32, 8, 128, 256, 16, false}, Case{mx::bfloat16, 3, 32, 224, 19, true},
                                           Case{mx::bfloat16, 4, 64, 320, 33, false}, Case{mx::bfloat16, 2, 128, 384, 40, true},
                                           Case{mx::float16, 4, 32, 96, 5, false}, Case{mx::float16, 8, 64, 128, 48, true},
                                           Case{mx::float16, 3, 128, 128, 17, false}),
                         name_of);

TEST(FeedbackGpu, ProductsKeepF32) {
  NEED_CUDA();
  const int n = 48, k = 384;
  const auto a = mx::random::normal({n, k}, mx::float32, mx::random::key(1)), b = mx::random::normal({k, n}, mx::float32, mx::random::key(2));
  const auto x = as_matrix(a), y = as_matrix(b);
  const On gpu(mx::Device::gpu);
  const auto z = as_matrix(kernels::precise_product(a, b));
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int l = 0; l < k; ++l) sum += x[i][l] * y[l][j], size += std::abs(x[i][l] * y[l][j]);
      // Typically √K·u and not K·u of the magnitudes. Factors cut to 11 bits err by 2¹²·u in each term, some 2¹²·u / √K of the magnitudes.
      ASSERT_NEAR(z[i][j], sum, (std::sqrt(k) + 8) * u * size) << i << " " << j;
    }
  }
}

TEST(FeedbackGpu, OutlierChannelsDoNotMakeItWorse) {
  NEED_CUDA();
  Problem p(32, 256, 77);
  // Inputs a thousand times the others': what their errors add to a small channel's sum is large beside what a code of it is judged by.
  std::vector<float> factor(256, 1);
  for (int j = 3; j < 256; j += 50) factor[j] = 1000;
  const auto d = mx::array(factor.data(), {256}, mx::float32);
  p.hessian = mx::multiply(mx::multiply(p.hessian, d), mx::expand_dims(d, 1));
  const auto h = as_matrix(p.hessian), w = as_matrix(p.w);
  const On gpu(mx::Device::gpu);
  for (int bits : {3, 8}) {
    const Format format{Mode::affine, bits, 64};
    auto at = start_of(p, format, mx::bfloat16);
    for (int sweep = 0; sweep < 4; ++sweep) {
      const double before = error_of(p, at, format);
      const auto size = oracle::quadratic_error(magnitude(difference(w, as_matrix(values_of(at, format)))), magnitude(h));
      at = refine(p.w, p.hessian, at, format, 1);
      // What an accepted change misjudges is K·u of the magnitudes that its sum is made of.
      EXPECT_LE(error_of(p, at, format), before + 256 * u * size) << bits << " bits, sweep " << sweep;
    }
  }
}

}  // namespace
}  // namespace lquant::codec
