// Rows are independent of each other, columns are not. So columns are taken in blocks: what earlier (or, in refine, all other) blocks say
// comes as one matrix product, and inside a block each row runs on its own, its errors and sums in the first cache. Threads take slabs of rows
// through all blocks, and never wait for each other in between.
#include "kernels/multiversion.h"
LQUANT_EXACT_ARITHMETIC

#include "codec/feedback_cpu.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "codec/group_search.h"
#include "kernels/gemm.h"
#include "kernels/parallel.h"

namespace lquant::codec::cpu {
namespace {

// Wide enough for fast products, narrow enough that most of the work is in them.
constexpr int kBlock = 128;
constexpr int kMaxGroup = 128;  // groups are of 32, 64 or 128
// Rows of a slab: enough for fast products, few enough that their errors stay in the second cache (360 kB at 704 columns).
constexpr std::int64_t kSlab = 128;

mx::array on_host(const mx::array& x) {
  auto copy = mx::contiguous(x, false, mx::Device::cpu);
  copy.eval();
  return copy;
}

mx::array host_array(const mx::Shape& shape, mx::Dtype dtype) {
  mx::array made(shape, dtype, nullptr, {});
  made.set_data(mx::allocator::malloc(made.nbytes()));
  made.set_status(mx::array::Status::available);
  return made;
}

mx::array host_copy(const mx::array& x) {
  const auto source = on_host(x);
  auto copy = host_array(source.shape(), source.dtype());
  std::copy_n(source.data<char>(), source.nbytes(), copy.data<char>());
  return copy;
}

LQUANT_INLINE float nearest(float x, ScaleBias at, float top) {
  float q = std::rint((x - at.bias) / at.scale);
  q = q > 0 ? q : 0;  // NaN too
  return q < top ? q : top;
}

struct FeedbackJob {
  const float* w;       // [N, K]
  float* errors;        // [N, K]
  float* aims;          // [slab, columns]: the block's weights with the earlier blocks' feedback
  const float* inside;  // [columns, columns]
  std::uint8_t* codes;  // [N, K]
  const mx::array &scales, &biases;
  const int* group;  // of the block's columns
  std::int64_t k, begin, columns, groups;
  float top;
};

template <class S>
LQUANT_INLINE void feedback_rows(const FeedbackJob& job, std::int64_t first, std::int64_t last) {
  const auto* scales = job.scales.data<typename S::Bits>();
  const auto* biases = job.biases.data<typename S::Bits>();
  const std::int64_t n = job.columns;
  for (auto r = first; r < last; ++r) {
    float* aim = job.aims + (r - first) * n;
    const float* w = job.w + r * job.k + job.begin;
    float* errors = job.errors + r * job.k + job.begin;
    std::uint8_t* codes = job.codes + r * job.k + job.begin;
    for (std::int64_t j = 0; j < n; ++j) {
      const auto g = r * job.groups + job.group[j];
      const ScaleBias at{S::load(scales[g]), S::load(biases[g])};
      const float q = nearest(aim[j], at, job.top), e = w[j] - value_of<S>(q, at);
      codes[j] = static_cast<std::uint8_t>(q);
      errors[j] = e;
      const float* feedback = job.inside + j * n;
#pragma omp simd
      for (std::int64_t i = j + 1; i < n; ++i) aim[i] += e * feedback[i];
    }
  }
}

LQUANT_MULTIVERSION void feedback_range(const FeedbackJob& job, std::int64_t first, std::int64_t last) {
  kernels::with_storage(job.scales.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA { feedback_rows<decltype(s)>(job, first, last); });
}

struct RefineJob {
  const float* w;        // [N, K]
  float* errors;         // [N, K]
  float* slopes;         // [slab, n]: (errors · H) at the group's columns
  const float* hessian;  // [n, n], the group's own part
  const float* ones;     // [n]: its row sums
  float total;           // and their sum
  std::uint8_t* codes;   // [N, K]
  mx::array &scales, &biases;
  std::int64_t k, group, n, groups;
  float top;
};

/// One row of one group while it is worked on.
struct RefineRow {
  alignas(64) float w[kMaxGroup], e[kMaxGroup], r[kMaxGroup], q[kMaxGroup], d[kMaxGroup], hd[kMaxGroup];
};

/// y = H·x (H is its own transpose). With N known, the sums stay in registers.
template <int N>
LQUANT_INLINE void times(const float* h, const float* x, float* y) {
  float sums[N] = {};
  for (int j = 0; j < N; ++j) {
    const float* row = h + j * N;
    const float factor = x[j];
#pragma omp simd
    for (int i = 0; i < N; ++i) sums[i] += factor * row[i];
  }
  for (int i = 0; i < N; ++i) y[i] = sums[i];
}

template <int N>
LQUANT_INLINE float dot(const float* a, const float* b) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < N; ++i) sum += a[i] * b[i];
  return sum;
}

template <class S, int N>
LQUANT_INLINE void refit(const RefineJob& job, RefineRow& x, ScaleBias& at) {
  times<N>(job.hessian, x.q, x.hd);
  const float a = dot<N>(x.q, x.hd), mixed = dot<N>(x.q, job.ones), rq = dot<N>(x.r, x.q);
  float r1 = 0;
#pragma omp simd reduction(+ : r1)
  for (int i = 0; i < N; ++i) r1 += x.r[i];
  const double determinant = static_cast<double>(a) * job.total - static_cast<double>(mixed) * mixed;
  // All codes (that matter) alike: no slope to fit. The sums carry f32 rounding of about n·2^−24 relative.
  if (!(determinant > 1e-5 * static_cast<double>(a) * job.total)) return;
  const float ds = static_cast<float>((static_cast<double>(job.total) * rq - static_cast<double>(mixed) * r1) / determinant);
  const float scale = kernels::rounded<S>(at.scale + ds);
  const float bias = kernels::rounded<S>(at.bias + (r1 - mixed * (scale - at.scale)) / job.total);
  if (!(std::abs(scale) > 0) || (scale == at.scale && bias == at.bias)) return;
#pragma omp simd
  for (int i = 0; i < N; ++i) x.d[i] = x.w[i] - value_of<S>(x.q[i], {scale, bias}) - x.e[i];
  times<N>(job.hessian, x.d, x.hd);
  if (!(2 * dot<N>(x.r, x.d) + dot<N>(x.d, x.hd) < 0)) return;
  at = {scale, bias};
#pragma omp simd
  for (int i = 0; i < N; ++i) x.e[i] += x.d[i], x.r[i] += x.hd[i];
}

template <class S, int N>
LQUANT_INLINE void recode(const RefineJob& job, RefineRow& x, ScaleBias at) {
  for (int j = 0; j < N; ++j) {
    const float own = job.hessian[j * N + j], now = x.w[j] - x.e[j];
    if (!(own > 0)) continue;
    const float q = nearest(now + x.r[j] / own, at, job.top);
    if (q == x.q[j]) continue;
    const float d = now - value_of<S>(q, at);
    if (!(d * (2 * x.r[j] + own * d) < 0)) continue;
    x.q[j] = q;
    x.e[j] += d;
    const float* row = job.hessian + j * N;
#pragma omp simd
    for (int i = 0; i < N; ++i) x.r[i] += d * row[i];
  }
}

template <class S, int N>
LQUANT_INLINE void refine_rows(const RefineJob& job, std::int64_t first, std::int64_t last) {
  auto* scales = job.scales.data<typename S::Bits>();
  auto* biases = job.biases.data<typename S::Bits>();
  RefineRow x;
  for (auto r = first; r < last; ++r) {
    const auto at_row = r * job.k + job.group * N, g = r * job.groups + job.group;
    std::copy_n(job.w + at_row, N, x.w);
    std::copy_n(job.errors + at_row, N, x.e);
    std::copy_n(job.slopes + (r - first) * N, N, x.r);
    for (int i = 0; i < N; ++i) x.q[i] = job.codes[at_row + i];
    ScaleBias at{S::load(scales[g]), S::load(biases[g])};
    // One place for the two fits, for the compiler's sake: they are inlined.
    for (int turn = 0; turn < 2; ++turn) {
      refit<S, N>(job, x, at);
      if (turn == 0) recode<S, N>(job, x, at);
    }
    std::copy_n(x.e, N, job.errors + at_row);
    for (int i = 0; i < N; ++i) job.codes[at_row + i] = static_cast<std::uint8_t>(x.q[i]);
    scales[g] = S::store(at.scale);
    biases[g] = S::store(at.bias);
  }
}

LQUANT_MULTIVERSION void refine_range(const RefineJob& job, std::int64_t first, std::int64_t last) {
  kernels::with_storage(job.scales.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA {
    using S = decltype(s);
    if (job.n == 32) return refine_rows<S, 32>(job, first, last);
    if (job.n == 64) return refine_rows<S, 64>(job, first, last);
    refine_rows<S, 128>(job, first, last);
  });
}

/// w less what the codes stand for, rows [first, last).
template <class S>
LQUANT_INLINE void error_rows(const float* w, const Coded& coded, std::int64_t k, std::int64_t n, float* errors, std::int64_t first,
                              std::int64_t last) {
  const auto* codes = coded.codes.data<std::uint8_t>();
  const auto* scales = coded.scales.data<typename S::Bits>();
  const auto* biases = coded.biases.data<typename S::Bits>();
  for (auto begin = first * k; begin < last * k; begin += n) {
    const ScaleBias at{S::load(scales[begin / n]), S::load(biases[begin / n])};
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) errors[begin + i] = w[begin + i] - value_of<S>(static_cast<float>(codes[begin + i]), at);
  }
}

LQUANT_MULTIVERSION void error_range(const float* w, const Coded& coded, std::int64_t k, std::int64_t n, float* errors, std::int64_t first,
                                     std::int64_t last) {
  kernels::with_storage(coded.scales.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA { error_rows<decltype(s)>(w, coded, k, n, errors, first, last); });
}

kernels::Matrix view(const float* data, std::int64_t row) { return {data, mx::float32, row}; }

/// Calls body(first, last) for slabs of rows, which do not depend on the number of threads: neither do the results.
template <class Body>
void for_slabs(std::int64_t rows, const Body& body) {
  kernels::parallel_tasks((rows + kSlab - 1) / kSlab, [&](std::int64_t slab) { body(slab * kSlab, std::min(rows, (slab + 1) * kSlab)); });
}

}  // namespace

mx::array round_with_feedback(const mx::array& w, const mx::array& unit_upper, const mx::array& scales, const mx::array& biases,
                              const std::vector<int>& group, const Format& format) {
  const auto weights = on_host(w), upper = on_host(unit_upper), host_scales = on_host(scales), host_biases = on_host(biases);
  const std::int64_t k = w.shape(1);
  auto codes = host_array(w.shape(), mx::uint8);
  std::vector<float> errors(w.size());
  const float *from = weights.data<float>(), *factor = upper.data<float>();
  for_slabs(w.shape(0), [&](std::int64_t first, std::int64_t last) {
    std::vector<float> aims((last - first) * kBlock), inside(kBlock * kBlock);
    for (std::int64_t begin = 0; begin < k; begin += kBlock) {
      const auto columns = std::min<std::int64_t>(kBlock, k - begin);
      kernels::copy_matrix(last - first, columns, view(from + first * k + begin, k), aims.data(), mx::float32, columns);
      kernels::copy_matrix(columns, columns, view(factor + begin * k + begin, k), inside.data(), mx::float32, columns);
      if (begin > 0)
        kernels::gemm(last - first, columns, begin, 1, view(errors.data() + first * k, k), view(factor + begin, k), 1, aims.data(), mx::float32,
                      columns);
      feedback_range({from, errors.data(), aims.data(), inside.data(), codes.data<std::uint8_t>(), host_scales, host_biases, group.data() + begin, k,
                      begin, columns, scales.shape(1), static_cast<float>((1 << format.bits) - 1)},
                     first, last);
    }
  });
  return codes;
}

Coded refine(const mx::array& w, const mx::array& hessian, const Coded& start, const Format& format, int sweeps) {
  const auto weights = on_host(w), moments = on_host(hessian);
  Coded out{host_copy(start.codes), host_copy(start.scales), host_copy(start.biases)};
  const std::int64_t k = w.shape(1), n = format.group_size, groups = k / n;
  const float *from = weights.data<float>(), *h = moments.data<float>();
  // Of each group its own part of H, that part's row sums and their sum: [n, n], [n] and one number.
  const auto part = n * n + n + 1;
  std::vector<float> errors(w.size()), parts(groups * part);
  kernels::parallel_for(groups, 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto g = begin; g < end; ++g) {
      float *own = parts.data() + g * part, *ones = own + n * n, *total = ones + n;
      kernels::copy_matrix(n, n, view(h + g * n * k + g * n, k), own, mx::float32, n);
      *total = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        ones[i] = 0;
        for (std::int64_t j = 0; j < n; ++j) ones[i] += own[i * n + j];
        *total += ones[i];
      }
    }
  });
  for_slabs(w.shape(0), [&](std::int64_t first, std::int64_t last) {
    std::vector<float> slopes((last - first) * n);
    error_range(from, out, k, n, errors.data(), first, last);
    for (std::int64_t turn = 0; turn < sweeps * groups; ++turn) {
      const auto g = turn % groups;
      kernels::gemm(last - first, n, k, 1, view(errors.data() + first * k, k), view(h + g * n, k), 0, slopes.data(), mx::float32, n);
      const float *own = parts.data() + g * part, *ones = own + n * n;
      refine_range({from, errors.data(), slopes.data(), own, ones, ones[n], out.codes.data<std::uint8_t>(), out.scales, out.biases, k, g, n, groups,
                    static_cast<float>((1 << format.bits) - 1)},
                   first, last);
    }
  });
  return out;
}

mx::array take_columns(const mx::array& x, const std::vector<int>& order) {
  const auto source = on_host(x);
  auto taken = host_array(x.shape(), x.dtype());
  const auto k = static_cast<std::int64_t>(order.size());
  const auto copy = [&](auto* to, const auto* from) {
    for_slabs(x.shape(0), [&](std::int64_t first, std::int64_t last) {
      for (auto row = first * k; row < last * k; row += k)
        for (std::int64_t j = 0; j < k; ++j) to[row + j] = from[row + order[j]];
    });
  };
  if (x.dtype() == mx::uint8)
    copy(taken.data<std::uint8_t>(), source.data<std::uint8_t>());
  else
    copy(taken.data<float>(), source.data<float>());
  return taken;
}

double feedback_error(const mx::array& w, const mx::array& quantized, const mx::array& hessian) {
  const auto weights = on_host(w), values = on_host(quantized), moments = on_host(hessian);
  const std::int64_t rows = w.shape(0), k = w.shape(1);
  const float *from = weights.data<float>(), *back = values.data<float>(), *h = moments.data<float>();
  std::vector<double> sums((rows + kSlab - 1) / kSlab);
  for_slabs(rows, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> errors((last - first) * k), products(errors.size());
    for (std::size_t i = 0; i < errors.size(); ++i) errors[i] = from[first * k + i] - back[first * k + i];
    kernels::gemm(last - first, k, k, 1, view(errors.data(), k), view(h, k), 0, products.data(), mx::float32, k);
    double sum = 0;
    for (std::size_t i = 0; i < errors.size(); ++i) sum += static_cast<double>(errors[i]) * products[i];
    sums[first / kSlab] = sum;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace lquant::codec::cpu
