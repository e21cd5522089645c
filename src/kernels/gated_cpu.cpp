// One pass forward, one pass backward for both gradients; each activation gives its value and its slope together, since they share
// their one exponential (Highway's, 1 ulp). Φ of the exact gelu is formula 7.1.26 of Abramowitz and Stegun's handbook, whose error in erf is below
// 1.5·10⁻⁷ everywhere, about two units of f32 at 1.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gated_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

struct ValueSlope {
  Vector value, slope;
};

/// 1 / d for d from 1 to 2¹²⁶, within 3 units: an estimate of at least 11 bits and one Newton step, in a third of a division's time.
HWY_INLINE Vector reciprocal(Vector d) {
  const Vector guess = hn::ApproximateReciprocal(d);
  return hn::MulAdd(guess, hn::NegMulAdd(d, guess, set(1)), guess);
}

/// 1 / (1 + e^−z), and 0 below −87, where it is 10⁻³⁸ and e^−z nears the end of f32.
HWY_INLINE Vector sigmoid(Vector z) {
  const Vector power = hn::Exp(Lanes(), hn::Min(set(87), hn::Neg(z)));
  return hn::IfThenElseZero(hn::Gt(z, set(-87)), reciprocal(hn::Add(set(1), power)));
}

HWY_INLINE ValueSlope silu(Vector g) {
  const Vector s = sigmoid(g), value = hn::Mul(g, s);
  return {value, hn::MulAdd(value, hn::Sub(set(1), s), s)};
}

HWY_INLINE ValueSlope gelu(Vector g) {
  const Vector density = hn::Exp(Lanes(), hn::Mul(set(-0.5f), hn::Mul(g, g)));
  // Beyond 100 the density is 0, and what t is does not matter.
  const Vector t = reciprocal(hn::MulAdd(set(0.3275911f * 0.70710678f), hn::Min(set(100), hn::Abs(g)), set(1)));
  Vector tail = hn::MulAdd(set(1.061405429f), t, set(-1.453152027f));
  tail = hn::MulAdd(tail, t, set(1.421413741f));
  tail = hn::MulAdd(tail, t, set(-0.284496736f));
  tail = hn::MulAdd(tail, t, set(0.254829592f));
  tail = hn::Mul(hn::Mul(hn::Mul(set(0.5f), t), tail), density);  // 1 − Φ(|g|)
  const Vector phi = hn::IfThenElse(hn::Lt(g, set(0)), tail, hn::Sub(set(1), tail));
  return {hn::Mul(g, phi), hn::MulAdd(hn::Mul(g, set(0.39894228f)), density, phi)};  // the density's 1/√(2π)
}

HWY_INLINE ValueSlope gelu_tanh(Vector g) {
  // ½(1 + tanh u) = σ(2u), with 2u = 2·√(2/π)·(g + 0.044715·g³)
  const Vector square = hn::Mul(g, g), twice = set(1.5957691f);
  const Vector s = sigmoid(hn::Mul(hn::Mul(twice, g), hn::MulAdd(set(0.044715f), square, set(1))));
  const Vector value = hn::Mul(g, s), inner = hn::Mul(twice, hn::MulAdd(set(3 * 0.044715f), square, set(1)));
  // value·(1 − s) first: far to the left s and value are 0, and 0·inner stays 0 where inner alone is large.
  return {value, hn::MulAdd(hn::Mul(value, hn::Sub(set(1), s)), inner, s)};
}

HWY_INLINE ValueSlope relu(Vector g) { return {hn::Max(set(0), g), hn::IfThenElseZero(hn::Gt(g, set(0)), set(1))}; }

HWY_INLINE ValueSlope relu2(Vector g) {
  const Vector positive = hn::Max(set(0), g);
  return {hn::Mul(positive, positive), hn::Add(positive, positive)};
}

template <Activation kind>
HWY_INLINE ValueSlope activate(Vector g) {
  if constexpr (kind == Activation::silu) return silu(g);
  if constexpr (kind == Activation::gelu) return gelu(g);
  if constexpr (kind == Activation::gelu_tanh) return gelu_tanh(g);
  if constexpr (kind == Activation::relu) return relu(g);
  if constexpr (kind == Activation::relu2) return relu2(g);
}

template <class T, Activation kind>
void gated_rows(const cpu::GatedArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t dense = row * a.width, start = row * a.stride, count = std::min(a.width, a.total - dense);
    const T *gate = static_cast<const T*>(a.gate) + start, *up = static_cast<const T*>(a.up) + start;
    if (!a.cotangent) {
      T* out = static_cast<T*>(a.out) + dense;
      for_lanes(count, [&](std::int64_t i, auto part)
                           LQUANT_STEP { store(hn::Mul(activate<kind>(load(gate + i, part)).value, load(up + i, part)), out + i, part); });
      continue;
    }
    const T* cotangent = static_cast<const T*>(a.cotangent) + dense;
    T *dgate = a.dgate ? static_cast<T*>(a.dgate) + start : nullptr, *dup = a.dup ? static_cast<T*>(a.dup) + start : nullptr;
    for_lanes(count, [&](std::int64_t i, auto part) LQUANT_STEP {
      const ValueSlope at = activate<kind>(load(gate + i, part));
      const Vector c = load(cotangent + i, part);
      if (dgate) store(hn::Mul(hn::Mul(c, load(up + i, part)), at.slope), dgate + i, part);
      if (dup) store(hn::Mul(c, at.value), dup + i, part);
    });
  }
}

template <class T>
void gated_slice(const cpu::GatedArgs& a, std::int64_t begin, std::int64_t end) {
  switch (a.activation) {
    case Activation::silu:
      return gated_rows<T, Activation::silu>(a, begin, end);
    case Activation::gelu:
      return gated_rows<T, Activation::gelu>(a, begin, end);
    case Activation::gelu_tanh:
      return gated_rows<T, Activation::gelu_tanh>(a, begin, end);
    case Activation::relu:
      return gated_rows<T, Activation::relu>(a, begin, end);
    case Activation::relu2:
      return gated_rows<T, Activation::relu2>(a, begin, end);
  }
}

void gated_all(const cpu::GatedArgs& a) {
  if (a.total == 0) return;
  parallel_for((a.total + a.width - 1) / a.width, cpu::grain_rows(a.width),
               [&](std::int64_t begin, std::int64_t end) { a.bf16 ? gated_slice<Bf16>(a, begin, end) : gated_slice<float>(a, begin, end); });
}

}  // namespace
}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lquant::kernels {
namespace {

HWY_EXPORT(gated_all);

/// The loop's arguments for gate and up of their own, cut into "rows" that the first-level cache holds with room to spare.
cpu::GatedArgs separate(const mx::array& gate, const mx::array& up, Activation activation) {
  constexpr std::int64_t chunk = 2048;
  return {gate.data<char>(),
          up.data<char>(),
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          static_cast<std::int64_t>(gate.size()),
          chunk,
          chunk,
          activation,
          gate.dtype() == mx::bfloat16};
}

/// … and for both in one tensor, whose halves alternate row by row.
cpu::GatedArgs fused(const mx::array& gate_up, Activation activation) {
  const std::int64_t width = gate_up.shape(-1) / 2;
  const char* gate = gate_up.data<char>();
  return {gate,
          gate + width * gate_up.itemsize(),
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          static_cast<std::int64_t>(gate_up.size()) / 2,
          width,
          2 * width,
          activation,
          gate_up.dtype() == mx::bfloat16};
}

}  // namespace

mx::array cpu::gated(const mx::array& gate, const mx::array& up, Activation activation) {
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    auto args = separate(in[0], in[1], activation);
    args.out = out[0].data<char>();
    HWY_DYNAMIC_DISPATCH(gated_all)(args);
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) {
    const std::vector<Output> outputs(argnums.size(), {in[0].shape(), in[0].dtype()});
    return make_op("gated_vjp", {in[0], in[1], mx::astype(cotangents[0], in[0].dtype())}, outputs,
                   [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                     auto args = separate(in[0], in[1], activation);
                     args.cotangent = in[2].data<char>();
                     for (std::size_t i = 0; i < argnums.size(); ++i) (argnums[i] == 0 ? args.dgate : args.dup) = out[i].data<char>();
                     HWY_DYNAMIC_DISPATCH(gated_all)(args);
                   });
  };
  return make_op("gated", {gate, up}, {{gate.shape(), gate.dtype()}}, compute, vjp)[0];
}

mx::array cpu::gated_fused(const mx::array& gate_up, Activation activation) {
  auto shape = gate_up.shape();
  shape.back() /= 2;
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    auto args = fused(in[0], activation);
    args.out = out[0].data<char>();
    HWY_DYNAMIC_DISPATCH(gated_all)(args);
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>&, const std::vector<mx::array>&) {
    return make_op("gated_fused_vjp", {in[0], mx::astype(cotangents[0], in[0].dtype())}, {{in[0].shape(), in[0].dtype()}},
                   [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                     auto args = fused(in[0], activation);
                     args.cotangent = in[1].data<char>();
                     args.dgate = out[0].data<char>();
                     args.dup = out[0].data<char>() + in[0].itemsize() * args.width;
                     HWY_DYNAMIC_DISPATCH(gated_all)(args);
                   });
  };
  return make_op("gated_fused", {gate_up}, {{shape, gate_up.dtype()}}, compute, vjp)[0];
}

}  // namespace lquant::kernels
#endif
