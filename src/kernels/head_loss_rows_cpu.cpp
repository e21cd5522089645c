// Three passes over a row that fits the second-level cache: finish the logits and find the largest, sum exponentials,
// and write the gradient, which evaluates them once more: exponentials cost less than a place to keep them. Sums run in f32
// lanes over short blocks and in double over the blocks, for KL is a small difference of larger numbers.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/head_loss_rows_cpu.cpp"
#include <hwy/foreach_target.h>

// After foreach_target.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/head_loss_rows.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// 4,096 floats are 256 additions a lane of AVX-512: their rounding stays near that of a single exponential.
constexpr std::int64_t kBlock = 4096;

/// Calls body(i, count): full vectors, then one of `count` lanes.
template <class Body>
HWY_INLINE void ForVectors(std::int64_t begin, std::int64_t end, const Body& body) {
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(D()));
  std::int64_t i = begin;
  for (; i + lanes <= end; i += lanes) body(i, lanes);
  if (i < end) body(i, end - i);
}

/// Lanes from `count` on are `rest`.
HWY_INLINE V Load(const float* p, std::int64_t count, float rest) {
  const D d;
  if (count == static_cast<std::int64_t>(hn::Lanes(d))) return hn::LoadU(d, p);
  HWY_ALIGN float part[hn::MaxLanes(d)];
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) part[i] = static_cast<std::int64_t>(i) < count ? p[i] : rest;
  return hn::Load(d, part);
}

HWY_INLINE void Store(V v, float* p, std::int64_t count) {
  const D d;
  if (count == static_cast<std::int64_t>(hn::Lanes(d))) return hn::StoreU(v, d, p);
  HWY_ALIGN float part[hn::MaxLanes(d)];
  hn::Store(v, d, part);
  std::copy_n(part, count, p);
}

HWY_INLINE double Sum(V v) {
  const D d;
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  double sum = 0;
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) sum += lanes[i];
  return sum;
}

/// exp(x) for x at most some rounding above 0; lanes at −∞ give 0.
HWY_INLINE V ExpOf(V x) { return hn::Exp(D(), x); }

constexpr float kNothing = -std::numeric_limits<float>::infinity();

float FinishLogits(float* z, std::int64_t n, float multiplier, float softcap, float temperature) {
  const D d;
  V largest = hn::Set(d, kNothing);
  const float inverse = 1.0f / temperature;
  if (softcap == 0) {
    const V scale = hn::Set(d, multiplier * inverse);
    ForVectors(0, n, [&](std::int64_t i, std::int64_t count) HWY_ATTR {
      const V value = hn::Mul(Load(z + i, count, 0), scale);
      Store(value, z + i, count);
      largest = hn::Max(largest, count == static_cast<std::int64_t>(hn::Lanes(d)) ? value : Load(z + i, count, kNothing));
    });
  } else {
    const V inner = hn::Set(d, multiplier / softcap), outer = hn::Set(d, softcap * inverse);
    ForVectors(0, n, [&](std::int64_t i, std::int64_t count) HWY_ATTR {
      const V value = hn::Mul(hn::Tanh(d, hn::Mul(Load(z + i, count, 0), inner)), outer);
      Store(value, z + i, count);
      largest = hn::Max(largest, count == static_cast<std::int64_t>(hn::Lanes(d)) ? value : Load(z + i, count, kNothing));
    });
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

double LogSumExp(const float* z, std::int64_t n, float largest) {
  const D d;
  const V top = hn::Set(d, largest);
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    V sum = hn::Zero(d);
    ForVectors(begin, std::min(n, begin + kBlock),
               [&](std::int64_t i, std::int64_t count) HWY_ATTR { sum = hn::Add(sum, ExpOf(hn::Sub(Load(z + i, count, kNothing), top))); });
    total += Sum(sum);
  }
  return largest + std::log(total);
}

KlRow KlOf(const float* s, const float* t, std::int64_t n, float largest_s, float largest_t) {
  const D d;
  const V top_s = hn::Set(d, largest_s), top_t = hn::Set(d, largest_t);
  double total_s = 0, total_t = 0, total_cross = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    V sum_s = hn::Zero(d), sum_t = hn::Zero(d), cross = hn::Zero(d);
    ForVectors(begin, std::min(n, begin + kBlock), [&](std::int64_t i, std::int64_t count) HWY_ATTR {
      // The lowest finite number, not −∞, beyond the row's end: its exponential is 0 too, and 0 times it stays 0.
      const V a = hn::Sub(Load(s + i, count, std::numeric_limits<float>::lowest() / 2), top_s);
      const V b = hn::Sub(Load(t + i, count, std::numeric_limits<float>::lowest() / 2), top_t);
      const V weight = ExpOf(b);
      sum_s = hn::Add(sum_s, ExpOf(a));
      sum_t = hn::Add(sum_t, weight);
      cross = hn::MulAdd(weight, hn::Sub(b, a), cross);
    });
    total_s += Sum(sum_s);
    total_t += Sum(sum_t);
    total_cross += Sum(cross);
  }
  const double log_s = std::log(total_s), log_t = std::log(total_t);
  return {total_cross / total_t + log_s - log_t, largest_s + log_s, largest_t + log_t};
}

void GradientRow(float* s, const float* t, std::int64_t n, double student_lse, double teacher_lse, float factor, float slope_cap) {
  const D d;
  const V lse_s = hn::Set(d, static_cast<float>(student_lse)), lse_t = hn::Set(d, static_cast<float>(teacher_lse)), scale = hn::Set(d, factor);
  const V one = hn::Set(d, 1.0f), inverse_cap = hn::Set(d, slope_cap == 0 ? 0.0f : 1.0f / slope_cap);
  ForVectors(0, n, [&](std::int64_t i, std::int64_t count) HWY_ATTR {
    const V z = Load(s + i, count, 0);
    V g = ExpOf(hn::Sub(z, lse_s));
    if (t) g = hn::Sub(g, ExpOf(hn::Sub(Load(t + i, count, 0), lse_t)));
    const V tangent = hn::Mul(z, inverse_cap);  // tanh of the softcap; 0 without one
    Store(hn::Mul(hn::Mul(g, scale), hn::NegMulAdd(tangent, tangent, one)), s + i, count);
  });
}

}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {

HWY_EXPORT(FinishLogits);
HWY_EXPORT(LogSumExp);
HWY_EXPORT(KlOf);
HWY_EXPORT(GradientRow);

float finish_logits(float* z, std::int64_t n, float multiplier, float softcap, float temperature) {
  return HWY_DYNAMIC_DISPATCH(FinishLogits)(z, n, multiplier, softcap, temperature);
}
double log_sum_exp(const float* z, std::int64_t n, float largest) { return HWY_DYNAMIC_DISPATCH(LogSumExp)(z, n, largest); }
KlRow kl_row(const float* s, const float* t, std::int64_t n, float largest_s, float largest_t) {
  return HWY_DYNAMIC_DISPATCH(KlOf)(s, t, n, largest_s, largest_t);
}
void loss_gradient_row(float* s, const float* t, std::int64_t n, double student_lse, double teacher_lse, float factor, float slope_cap) {
  HWY_DYNAMIC_DISPATCH(GradientRow)(s, t, n, student_lse, teacher_lse, factor, slope_cap);
}

}  // namespace lquant::kernels
#endif
