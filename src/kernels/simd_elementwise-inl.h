// Loads, stores and loops over f32 and bf16 rows for Highway's per-target files. Every value is f32 once loaded. Included once per
// instruction set, hence the guard that toggles.
#if defined(LQUANT_KERNELS_SIMD_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LQUANT_KERNELS_SIMD_ELEMENTWISE_INL_H_
#undef LQUANT_KERNELS_SIMD_ELEMENTWISE_INL_H_
#else
#define LQUANT_KERNELS_SIMD_ELEMENTWISE_INL_H_
#endif

#include <hwy/highway.h>
#include <mlx/types/half_types.h>

#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Bf16 = mlx::core::bfloat16_t;
using Lanes = hn::ScalableTag<float>;
using Words = hn::Rebind<std::uint32_t, Lanes>;
using Halves = hn::Rebind<std::uint16_t, Lanes>;
using Vector = hn::Vec<Lanes>;

HWY_INLINE Vector set(float value) { return hn::Set(Lanes(), value); }

HWY_INLINE Vector load(const float* p) { return hn::LoadU(Lanes(), p); }
HWY_INLINE Vector load(const Bf16* p) {
  const auto half = hn::LoadU(Halves(), reinterpret_cast<const std::uint16_t*>(p));
  return hn::BitCast(Lanes(), hn::ShiftLeft<16>(hn::PromoteTo(Words(), half)));
}

/// The bits of v rounded to bf16, to nearest, ties to even, in the upper half of each word. NaN only where its lower half is not full of ones.
HWY_INLINE hn::Vec<Words> bf16_bits_of_number(Vector v) {
  const Words d;
  const auto bits = hn::BitCast(d, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1));
  return hn::Add(bits, hn::Add(odd, hn::Set(d, 0x7FFF)));
}

/// The same, and any NaN stays NaN (MLX's 0x7FC0).
HWY_INLINE hn::Vec<Words> bf16_bits(Vector v) {
  const Words d;
  return hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(v)), hn::Set(d, 0x7FC00000u), bf16_bits_of_number(v));
}

HWY_INLINE void store(Vector v, float* p) { hn::StoreU(v, Lanes(), p); }
HWY_INLINE void store(Vector v, Bf16* p) {
  hn::StoreU(hn::TruncateTo(Halves(), hn::ShiftRight<16>(bf16_bits(v))), Halves(), reinterpret_cast<std::uint16_t*>(p));
}

/// v as it would come back from memory of type T.
template <class T>
HWY_INLINE Vector rounded(Vector v) {
  if constexpr (sizeof(T) == 4) return v;
  return hn::BitCast(Lanes(), hn::And(bf16_bits(v), hn::Set(Words(), 0xFFFF0000u)));
}

/// The same, two steps faster, for what was made of values of type T alone: their NaN has zeros in its lower half, and so stays NaN.
template <class T>
HWY_INLINE Vector rounded_pure(Vector v) {
  if constexpr (sizeof(T) == 4) return v;
  return hn::BitCast(Lanes(), hn::And(bf16_bits_of_number(v), hn::Set(Words(), 0xFFFF0000u)));
}

/// How much of a vector a step of for_lanes handles: all of it, or the first `count` lanes (the others read as zero).
struct Whole {};
struct Part {
  std::int64_t count;
};

template <class T>
HWY_INLINE Vector load(const T* p, Whole) {
  return load(p);
}
template <class T>
HWY_INLINE Vector load(const T* p, Part part) {
  HWY_ALIGN T buffer[hn::MaxLanes(Lanes())] = {};
  std::memcpy(buffer, p, part.count * sizeof(T));
  return load(buffer);
}
template <class T>
HWY_INLINE void store(Vector v, T* p, Whole) {
  store(v, p);
}
template <class T>
HWY_INLINE void store(Vector v, T* p, Part part) {
  HWY_ALIGN T buffer[hn::MaxLanes(Lanes())];
  store(v, buffer);
  std::memcpy(p, buffer, part.count * sizeof(T));
}

/// step(i, Whole or Part) over [0, n) a vector at a time.
template <class Step>
HWY_INLINE void for_lanes(std::int64_t n, const Step& step) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) step(i, Whole());
  if (i < n) step(i, Part{n - i});
}

/// For `step` above: a lambda compiled for the target and always inlined, so that accumulators stay in registers.
#undef LQUANT_STEP
#define LQUANT_STEP HWY_ATTR __attribute__((always_inline))

HWY_INLINE float sum(Vector v) { return hn::GetLane(hn::SumOfLanes(Lanes(), v)); }

}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
