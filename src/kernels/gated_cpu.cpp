// One pass forward, one pass backward for both gradients; each activation gives its value and its slope together.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gated_cpu.cpp"
// Processors that have no AVX2 are older than 2013: the scalar code, which Highway always makes, is enough for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/elementwise_cpu.h"
#include "kernels/parallel.h"
#include "kernels/simd_activations-inl.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {
namespace {

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

/// activation(gate) between its limits, or of a gate between them.
template <bool limits_activated>
HWY_INLINE ValueSlope limited(Vector g, const ClampedGate& c) {
  const Vector limit = set(c.limit);
  const ValueSlope at = swish(limits_activated ? g : hn::Min(limit, g), set(c.alpha));
  // A NaN is what Min gives back as its second argument.
  if constexpr (limits_activated) return {hn::Min(limit, at.value), hn::IfThenElseZero(hn::Lt(at.value, limit), at.slope)};
  return {at.value, hn::IfThenElseZero(hn::Lt(g, limit), at.slope)};
}

template <class T, bool limits_activated>
void clamped_rows(const cpu::GatedArgs& a, const ClampedGate& c, std::int64_t begin, std::int64_t end) {
  const Vector limit = set(c.limit), shift = set(c.shift);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t start = row * a.stride, count = std::min(a.width, a.total - start);
    const T *gate = static_cast<const T*>(a.gate) + start, *up = static_cast<const T*>(a.up) + start;
    const T* cotangent = a.cotangent ? static_cast<const T*>(a.cotangent) + start : nullptr;
    T *out = a.out ? static_cast<T*>(a.out) + start : nullptr, *dgate = a.dgate ? static_cast<T*>(a.dgate) + start : nullptr,
      *dup = a.dup ? static_cast<T*>(a.dup) + start : nullptr;
    for_lanes(count, [&](std::int64_t i, auto part) LQUANT_STEP {
      const ValueSlope at = limited<limits_activated>(load(gate + i, part), c);
      const Vector u = load(up + i, part), shifted = hn::Add(hn::Max(hn::Neg(limit), hn::Min(limit, u)), shift);
      if (out) store(hn::Mul(at.value, shifted), out + i, part);
      if (!cotangent) return;
      const Vector g = load(cotangent + i, part);
      if (dgate) store(hn::Mul(hn::Mul(g, shifted), at.slope), dgate + i, part);
      if (dup) store(hn::IfThenElseZero(hn::Lt(hn::Abs(u), limit), hn::Mul(g, at.value)), dup + i, part);
    });
  }
}

template <class T>
void gated_slice(const cpu::GatedArgs& a, std::int64_t begin, std::int64_t end) {
  if (a.clamp) {
    return a.clamp->limits_activated ? clamped_rows<T, true>(a, *a.clamp, begin, end) : clamped_rows<T, false>(a, *a.clamp, begin, end);
  }
  with_activation(a.activation, [&](auto kind) { gated_rows<T, decltype(kind)::value>(a, begin, end); });
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
cpu::GatedArgs separate(const mx::array& gate, const mx::array& up, Activation activation, const std::optional<ClampedGate>& clamp) {
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
          gate.dtype() == mx::bfloat16,
          clamp ? &*clamp : nullptr};
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

mx::array gated_op(const char* name, const mx::array& gate, const mx::array& up, Activation activation, const std::optional<ClampedGate>& clamp) {
  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    auto args = separate(in[0], in[1], activation, clamp);
    args.out = out[0].data<char>();
    HWY_DYNAMIC_DISPATCH(gated_all)(args);
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>&) {
    const std::vector<Output> outputs(argnums.size(), {in[0].shape(), in[0].dtype()});
    return make_op("gated_vjp", {in[0], in[1], mx::astype(cotangents[0], in[0].dtype())}, outputs,
                   [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
                     auto args = separate(in[0], in[1], activation, clamp);
                     args.cotangent = in[2].data<char>();
                     for (std::size_t i = 0; i < argnums.size(); ++i) (argnums[i] == 0 ? args.dgate : args.dup) = out[i].data<char>();
                     HWY_DYNAMIC_DISPATCH(gated_all)(args);
                   });
  };
  return make_op(name, {gate, up}, {{gate.shape(), gate.dtype()}}, compute, vjp)[0];
}

}  // namespace

mx::array cpu::gated(const mx::array& gate, const mx::array& up, Activation activation) { return gated_op("gated", gate, up, activation, {}); }

mx::array cpu::clamped_gated(const mx::array& gate, const mx::array& up, const ClampedGate& clamp) {
  return gated_op("clamped_gated", gate, up, Activation::silu, clamp);
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
