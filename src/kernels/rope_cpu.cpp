// A token's cosines and sines are made once, in the first-level cache, and serve all of its heads. The gradient of a rotation is the rotation
// back: the same loop with the sines negated.
//
// The angle is brought into [−π, π] first, since Highway's sine is accurate to 3 ulp for small arguments only: with k = round(angle / 2π) and 2π
// split into three f32 parts, angle − k·2π by three fused products is exact to about ulp(π), even at position 2²⁰ (k has 18 bits there).
// What remains is the rounding of the angle itself, which every f32 implementation shares: |angle|·2⁻²⁴.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rope_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <cstring>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

/// cos and sin of position·inv_freq, times the magnitude; the sine with the direction's sign.
void make_table(const cpu::RopeArgs& a, std::int64_t position, float* cosines, float* sines) {
  const Vector at = set(static_cast<float>(position)), cos_scale = set(a.magnitude), sin_scale = set(a.magnitude * a.direction);
  for_lanes(a.pairs, [&](std::int64_t f, auto part) LQUANT_STEP {
    const Vector angle = hn::Mul(at, load(a.inv_freq + f, part));
    const Vector turns = hn::Round(hn::Mul(angle, set(0x1.45f306p-3f)));  // 1 / 2π
    Vector rest = hn::NegMulAdd(turns, set(0x1.921fb6p+2f), angle);       // 2π as the sum of three f32
    rest = hn::NegMulAdd(turns, set(-0x1.777a5cp-23f), rest);
    rest = hn::NegMulAdd(turns, set(-0x1.ee59dap-48f), rest);
    store(hn::Mul(hn::Cos(Lanes(), rest), cos_scale), cosines + f, part);
    store(hn::Mul(hn::Sin(Lanes(), rest), sin_scale), sines + f, part);
  });
}

template <class T>
void turn_halves(const T* x, T* out, const float* cosines, const float* sines, std::int64_t pairs) {
  for_lanes(pairs, [&](std::int64_t f, auto part) LQUANT_STEP {
    const Vector a = load(x + f, part), b = load(x + pairs + f, part), c = load(cosines + f, part), s = load(sines + f, part);
    store(hn::NegMulAdd(b, s, hn::Mul(a, c)), out + f, part);
    store(hn::MulAdd(a, s, hn::Mul(b, c)), out + pairs + f, part);
  });
}

HWY_INLINE void load_pairs(const float* p, Vector& a, Vector& b) { hn::LoadInterleaved2(Lanes(), p, a, b); }
HWY_INLINE void store_pairs(Vector a, Vector b, float* p) { hn::StoreInterleaved2(a, b, Lanes(), p); }
// Two bf16 side by side are one word, whose upper half already is the second value as f32.
HWY_INLINE void load_pairs(const Bf16* p, Vector& a, Vector& b) {
  const auto words = hn::LoadU(Words(), reinterpret_cast<const std::uint32_t*>(p));
  a = hn::BitCast(Lanes(), hn::ShiftLeft<16>(words));
  b = hn::BitCast(Lanes(), hn::And(words, hn::Set(Words(), 0xFFFF0000u)));
}
HWY_INLINE void store_pairs(Vector a, Vector b, Bf16* p) {
  const auto upper = hn::And(bf16_bits(b), hn::Set(Words(), 0xFFFF0000u));
  hn::StoreU(hn::Or(hn::ShiftRight<16>(bf16_bits(a)), upper), Words(), reinterpret_cast<std::uint32_t*>(p));
}

template <class T>
void turn_pairs(const T* x, T* out, const float* cosines, const float* sines, std::int64_t pairs) {
  const std::int64_t lanes = hn::Lanes(Lanes());
  HWY_ALIGN T buffer[2 * hn::MaxLanes(Lanes())] = {};
  for (std::int64_t f = 0; f < pairs; f += lanes) {
    const bool whole = f + lanes <= pairs;
    const T* from = x + 2 * f;
    if (!whole) from = static_cast<const T*>(std::memcpy(buffer, from, 2 * (pairs - f) * sizeof(T)));
    Vector a, b;
    load_pairs(from, a, b);
    const Vector c = whole ? load(cosines + f) : load(cosines + f, Part{pairs - f}), s = whole ? load(sines + f) : load(sines + f, Part{pairs - f});
    store_pairs(hn::NegMulAdd(b, s, hn::Mul(a, c)), hn::MulAdd(a, s, hn::Mul(b, c)), whole ? out + 2 * f : buffer);
    if (!whole) std::memcpy(out + 2 * f, buffer, 2 * (pairs - f) * sizeof(T));
  }
}

template <class T>
void rope_tokens(const cpu::RopeArgs& a, float* table, std::int64_t begin, std::int64_t end) {
  float* sines = table + a.pairs;
  for (std::int64_t token = begin; token < end; ++token) {
    make_table(a, a.positions ? a.positions[token] : a.offset + token % a.length, table, sines);
    for (std::int64_t head = 0; head < a.heads; ++head) {
      const std::int64_t start = (token * a.heads + head) * a.width;
      const T* x = static_cast<const T*>(a.x) + start;
      T* out = static_cast<T*>(a.out) + start;
      a.interleaved ? turn_pairs(x, out, table, sines, a.pairs) : turn_halves(x, out, table, sines, a.pairs);
      std::memcpy(out + 2 * a.pairs, x + 2 * a.pairs, (a.width - 2 * a.pairs) * sizeof(T));
    }
  }
}

void rope_all(const cpu::RopeArgs& a) {
  parallel_for(a.tokens, cpu::grain_rows(a.heads * a.width), [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> table(2 * a.pairs);
    a.bf16 ? rope_tokens<Bf16>(a, table.data(), begin, end) : rope_tokens<float>(a, table.data(), begin, end);
  });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {
HWY_EXPORT(rope_all);
}

mx::array cpu::rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude, bool interleaved,
                    const std::optional<mx::array>& positions, int direction) {
  std::vector<mx::array> inputs{x, inv_freq};
  if (positions) inputs.push_back(*positions);
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    const auto& shape = in[0].shape();
    const std::int64_t tokens = std::int64_t{shape[0]} * shape[1];
    HWY_DYNAMIC_DISPATCH(rope_all)
    ({in[0].data<char>(), in[1].data<float>(), in.size() > 2 ? in[2].data<std::int32_t>() : nullptr, out[0].data<char>(), tokens, shape[1], shape[2],
      shape[3], static_cast<std::int64_t>(in[1].size()), offset, magnitude, static_cast<float>(direction), interleaved,
      in[0].dtype() == mx::bfloat16});
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) -> std::vector<mx::array> {
    if (argnums != std::vector<int>{0}) throw std::invalid_argument("[kernels] rope is differentiable for x alone");
    const auto at = in.size() > 2 ? std::optional(in[2]) : std::nullopt;
    return {rope(mx::astype(cotangents[0], in[0].dtype()), in[1], offset, magnitude, interleaved, at, -direction)};
  };
  return make_op("rope", inputs, {{x.shape(), x.dtype()}}, compute, vjp)[0];
}

}  // namespace lquant::kernels
#endif
