// Scores live in padded f32 rows, so every loop here works on whole vectors and masks by comparing positions: a query sees one
// contiguous range of keys (and a key one range of queries), to which segment numbers add an equality. What lies outside the range is
// written as zero without being looked at, since the products before left whatever they liked there.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_rows_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the baseline code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>  // before all else: it includes this file once per instruction set

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/attention_blocks.h"
#include "kernels/attention_rows.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

using namespace blockwise;
using Integers = hn::Rebind<std::int32_t, Lanes>;

HWY_INLINE std::int64_t lanes() { return static_cast<std::int64_t>(hn::Lanes(Lanes())); }

void zero(float* p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; i += lanes()) store(set(0), p + i);
}

/// The lanes i … i + lanes − 1 of a row that lie in `seen` and, with segments, carry the number `own` or `trunk`.
HWY_INLINE hn::Mask<Lanes> mask_at(std::int64_t i, Range seen, const std::int32_t* segments, std::int32_t own, std::int32_t trunk) {
  const Integers d;
  const auto position = hn::Iota(d, static_cast<std::int32_t>(i));
  const auto before = hn::Set(d, static_cast<std::int32_t>(seen.begin) - 1), end = hn::Set(d, static_cast<std::int32_t>(seen.end));
  auto mask = hn::And(hn::Gt(position, before), hn::Lt(position, end));
  if (segments) {
    const auto numbers = hn::LoadU(d, segments + i);
    mask = hn::And(mask, hn::Or(hn::Eq(numbers, hn::Set(d, own)), hn::Eq(numbers, hn::Set(d, trunk))));
  }
  return hn::RebindMask(Lanes(), mask);
}

/// The range in a block of `length` positions that starts at `origin`, and the whole vectors that hold it.
HWY_INLINE Range within(Range positions, std::int64_t origin, std::int64_t length) {
  const auto begin = std::clamp<std::int64_t>(positions.begin - origin, 0, length);
  return {begin, std::clamp<std::int64_t>(positions.end - origin, begin, length)};
}
HWY_INLINE Range whole_vectors(Range r) { return {r.begin / lanes() * lanes(), round_up(r.end, lanes())}; }

HWY_INLINE Vector capped(Vector x, float softcap) { return hn::Mul(set(softcap), hn::Tanh(Lanes(), hn::Mul(x, set(1 / softcap)))); }

/// Masks a row of scores in place and returns its maximum.
template <bool cap>
float mask_row(float* scores, Range seen, Range vectors, const std::int32_t* segments, std::int32_t own, std::int32_t trunk, float softcap) {
  const Vector hidden = set(-std::numeric_limits<float>::infinity());
  Vector most = hidden;
  for (std::int64_t i = vectors.begin; i < vectors.end; i += lanes()) {
    Vector x = load(scores + i);
    if constexpr (cap) x = capped(x, softcap);
    x = hn::IfThenElse(mask_at(i, seen, segments, own, trunk), x, hidden);
    store(x, scores + i);
    most = hn::Max(most, x);
  }
  return hn::GetLane(hn::MaxOfLanes(Lanes(), most));
}

/// scores → exp(scores − maximum), returning the sum. Highway's exp errs by 1 ulp and takes −∞ to 0.
float exp_row(float* scores, Range vectors, float maximum) {
  const Vector shift = set(maximum);
  Vector total = set(0);
  for (std::int64_t i = vectors.begin; i < vectors.end; i += lanes()) {
    const Vector p = hn::Exp(Lanes(), hn::Sub(load(scores + i), shift));
    store(p, scores + i);
    total = hn::Add(total, p);
  }
  return sum(total);
}

void scale_row(float* p, std::int64_t n, float factor) {
  for_lanes(n, [&](std::int64_t i, auto part) LQUANT_STEP { store(hn::Mul(load(p + i, part), set(factor)), p + i, part); });
}

void softmax_all(const SoftmaxBlock& b) {
  const std::int32_t* keys = b.segments ? b.segments + b.key : nullptr;
  const std::int64_t padded = round_up(b.keys, kLanes);
  for (std::int64_t r = 0; r < b.heads * b.queries; ++r) {
    const std::int64_t t = b.query + r % b.queries;
    float* scores = b.scores + r * b.row;
    const Range seen = within(b.visibility->keys_of(t), b.key, b.keys), vectors = seen.size() ? whole_vectors(seen) : Range{0, 0};
    zero(scores, 0, vectors.begin);
    zero(scores, vectors.end, padded);
    if (seen.size() == 0) continue;
    const std::int32_t own = keys ? b.segments[t] : 0, trunk = b.visibility->trunk(own);
    const float most = b.softcap > 0 ? mask_row<true>(scores, seen, vectors, keys, own, trunk, b.softcap)
                                     : mask_row<false>(scores, seen, vectors, keys, own, trunk, 0);
    const float before = b.maximum[r], maximum = std::max(before, most);
    // Until a row has seen a key its maximum is −∞, which must not be subtracted from −∞.
    const float total = exp_row(scores, vectors, std::isinf(maximum) && maximum < 0 ? 0 : maximum);
    if (maximum > before) {
      const float correction = std::exp(before - maximum);
      b.sum[r] *= correction;
      scale_row(b.value + r * b.value_row, b.value_dim, correction);
      b.maximum[r] = maximum;
    }
    b.sum[r] += total;
  }
}

/// One key's scores and products for one head's queries.
template <bool cap>
void gradient_row(float* scores, float* products, const float* log_sum, const float* delta, Range seen, Range vectors, const std::int32_t* segments,
                  std::int32_t own, float scale, float softcap) {
  for (std::int64_t i = vectors.begin; i < vectors.end; i += lanes()) {
    const auto mask = mask_at(i, seen, segments, own, own);
    Vector x = hn::Mul(set(scale), load(scores + i)), slope = set(1);
    if constexpr (cap) {
      const Vector y = hn::Tanh(Lanes(), hn::Mul(x, set(1 / softcap)));
      x = hn::Mul(set(softcap), y);
      slope = hn::NegMulAdd(y, y, slope);
    }
    const Vector p = hn::IfThenElseZero(mask, hn::Exp(Lanes(), hn::Sub(x, load(log_sum + i))));
    Vector ds = hn::Mul(hn::Mul(p, set(scale)), hn::Sub(load(products + i), load(delta + i)));
    if constexpr (cap) ds = hn::Mul(ds, slope);
    store(p, scores + i);
    store(hn::IfThenElseZero(mask, ds), products + i);
  }
}

void gradient_all(const GradientBlock& b) {
  const std::int32_t* queries = b.segments ? b.segments + b.query : nullptr;
  for (std::int64_t s = 0; s < b.keys; ++s) {
    const Range seen = within(b.visibility->queries_of(b.key + s), b.query, b.queries), vectors = seen.size() ? whole_vectors(seen) : Range{0, 0};
    const std::int32_t own = queries ? b.segments[b.key + s] : 0;
    for (std::int64_t j = 0; j < b.heads; ++j) {
      float *scores = b.scores + s * b.row + j * b.columns, *products = b.products + s * b.row + j * b.columns;
      for (float* row : {scores, products}) {
        zero(row, 0, vectors.begin);
        zero(row, vectors.end, b.columns);
      }
      const float *log_sum = b.log_sum + j * b.columns, *delta = b.delta + j * b.columns;
      b.softcap > 0 ? gradient_row<true>(scores, products, log_sum, delta, seen, vectors, queries, own, b.scale, b.softcap)
                    : gradient_row<false>(scores, products, log_sum, delta, seen, vectors, queries, own, b.scale, 0);
    }
  }
}

template <class T>
void widen_values(const T* from, float scale, std::int64_t n, float* to) {
  for_lanes(n, [&](std::int64_t i, auto part) LQUANT_STEP { store(hn::Mul(set(scale), load(from + i, part)), to + i, part); });
}
void widen_any(const void* from, bool bf16, float scale, std::int64_t n, float* to) {
  bf16 ? widen_values(static_cast<const Bf16*>(from), scale, n, to) : widen_values(static_cast<const float*>(from), scale, n, to);
}

template <class T>
void narrow_values(const float* from, float divisor, std::int64_t n, T* to) {
  for_lanes(n, [&](std::int64_t i, auto part) LQUANT_STEP { store(hn::Div(load(from + i, part), set(divisor)), to + i, part); });
}
void narrow_any(const float* from, float divisor, std::int64_t n, void* to, bool bf16) {
  bf16 ? narrow_values(from, divisor, n, static_cast<Bf16*>(to)) : narrow_values(from, divisor, n, static_cast<float*>(to));
}

template <class T>
float dot_values(const T* x, const T* y, std::int64_t n, float* to) {
  Vector total = set(0);
  for_lanes(n, [&](std::int64_t i, auto part) LQUANT_STEP {
    const Vector value = load(x + i, part);
    store(value, to + i, part);
    total = hn::MulAdd(value, load(y + i, part), total);
  });
  return sum(total);
}
float dot_any(const void* x, const void* y, bool bf16, std::int64_t n, float* to) {
  return bf16 ? dot_values(static_cast<const Bf16*>(x), static_cast<const Bf16*>(y), n, to)
              : dot_values(static_cast<const float*>(x), static_cast<const float*>(y), n, to);
}

void accumulate_all(const float* from, std::int64_t n, float* to) {
  for_lanes(n, [&](std::int64_t i, auto part) LQUANT_STEP { store(hn::Add(load(to + i, part), load(from + i, part)), to + i, part); });
}

template <class T, int count>
void scores_of(const ThinScores& x, std::int64_t first) {
  const float* q = x.q + first * x.dim;
  for (std::int64_t s = 0; s < x.keys; ++s) {
    const T* k = static_cast<const T*>(x.k) + s * x.k_row;
    Vector total[count];
    for (auto& t : total) t = set(0);
    for_lanes(x.dim, [&](std::int64_t i, auto part) LQUANT_STEP {
      const Vector key = load(k + i, part);
      for (int r = 0; r < count; ++r) total[r] = hn::MulAdd(key, load(q + r * x.dim + i, part), total[r]);
    });
    for (int r = 0; r < count; ++r) x.scores[(first + r) * x.row + s] = sum(total[r]);
  }
}

/// `count` rows of values, `width` vectors from column i on (or one part of a vector), kept in registers over all keys.
template <class T, int count, int width, class Part>
HWY_INLINE void value_columns(const ThinValues& x, std::int64_t first, std::int64_t i, Part part) {
  Vector total[count][width];
  const auto at = [&](int r, int c) { return x.value + (first + r) * x.value_row + i + c * lanes(); };
  for (int r = 0; r < count; ++r) {
    for (int c = 0; c < width; ++c) total[r][c] = load(at(r, c), part);
  }
  const T* v = static_cast<const T*>(x.v) + i;
  for (std::int64_t s = 0; s < x.keys; ++s, v += x.v_row) {
    Vector value[width];
    for (int c = 0; c < width; ++c) value[c] = load(v + c * lanes(), part);
    for (int r = 0; r < count; ++r) {
      const Vector p = set(x.p[(first + r) * x.row + s]);
      for (int c = 0; c < width; ++c) total[r][c] = hn::MulAdd(p, value[c], total[r][c]);
    }
  }
  for (int r = 0; r < count; ++r) {
    for (int c = 0; c < width; ++c) store(total[r][c], at(r, c), part);
  }
}

template <class T, int count>
void values_of(const ThinValues& x, std::int64_t first) {
  constexpr int width = 4;  // with four rows: 16 sums, 4 values and a probability in the 32 registers of AVX-512
  std::int64_t i = 0;
  for (; i + width * lanes() <= x.dim; i += width * lanes()) value_columns<T, count, width>(x, first, i, Whole());
  for (; i + lanes() <= x.dim; i += lanes()) value_columns<T, count, 1>(x, first, i, Whole());
  if (i < x.dim) value_columns<T, count, 1>(x, first, i, Part{x.dim - i});
}

/// step(first, constant) over [0, rows) in fours, then what is left at once.
template <class Step>
HWY_INLINE void for_rows(std::int64_t rows, const Step& step) {
  std::int64_t first = 0;
  for (; first + 4 <= rows; first += 4) step(first, std::integral_constant<int, 4>());
  switch (rows - first) {
    case 3:
      return step(first, std::integral_constant<int, 3>());
    case 2:
      return step(first, std::integral_constant<int, 2>());
    case 1:
      return step(first, std::integral_constant<int, 1>());
  }
}

void thin_scores_all(const ThinScores& x) {
  for_rows(x.rows, [&](std::int64_t first, auto count)
                       HWY_ATTR { x.bf16 ? scores_of<Bf16, decltype(count)::value>(x, first) : scores_of<float, decltype(count)::value>(x, first); });
}
void thin_values_all(const ThinValues& x) {
  for_rows(x.rows, [&](std::int64_t first, auto count)
                       HWY_ATTR { x.bf16 ? values_of<Bf16, decltype(count)::value>(x, first) : values_of<float, decltype(count)::value>(x, first); });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(softmax_all);
HWY_EXPORT(gradient_all);
HWY_EXPORT(widen_any);
HWY_EXPORT(narrow_any);
HWY_EXPORT(dot_any);
HWY_EXPORT(accumulate_all);
HWY_EXPORT(thin_scores_all);
HWY_EXPORT(thin_values_all);

}  // namespace

void blockwise::softmax_block(const SoftmaxBlock& block) { HWY_DYNAMIC_DISPATCH(softmax_all)(block); }
void blockwise::gradient_block(const GradientBlock& block) { HWY_DYNAMIC_DISPATCH(gradient_all)(block); }
void blockwise::widen(const void* from, bool bf16, float scale, std::int64_t n, float* to) {
  HWY_DYNAMIC_DISPATCH(widen_any)(from, bf16, scale, n, to);
}
void blockwise::narrow(const float* from, float divisor, std::int64_t n, void* to, bool bf16) {
  HWY_DYNAMIC_DISPATCH(narrow_any)(from, divisor, n, to, bf16);
}
float blockwise::widen_dot(const void* x, const void* y, bool bf16, std::int64_t n, float* to) {
  return HWY_DYNAMIC_DISPATCH(dot_any)(x, y, bf16, n, to);
}
void blockwise::accumulate(const float* from, std::int64_t n, float* to) { HWY_DYNAMIC_DISPATCH(accumulate_all)(from, n, to); }
void blockwise::thin_scores(const ThinScores& product) { HWY_DYNAMIC_DISPATCH(thin_scores_all)(product); }
void blockwise::thin_values(const ThinValues& product) { HWY_DYNAMIC_DISPATCH(thin_values_all)(product); }

}  // namespace lquant::kernels
#endif
