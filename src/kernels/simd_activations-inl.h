// Activations on vectors: value and slope together, since they share their one exponential (Highway's, 1 ulp). Included once per instruction set,
// hence the guard that toggles. Φ of the exact gelu is formula 7.1.26 of Abramowitz and Stegun's handbook, whose error in erf is below
// 1.5·10⁻⁷ everywhere, about two units of f32 at 1.
#if defined(LQUANT_KERNELS_SIMD_ACTIVATIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LQUANT_KERNELS_SIMD_ACTIVATIONS_INL_H_
#undef LQUANT_KERNELS_SIMD_ACTIVATIONS_INL_H_
#else
#define LQUANT_KERNELS_SIMD_ACTIVATIONS_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <type_traits>

#include "kernels/activation.h"
#include "kernels/simd_elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lquant::kernels::HWY_NAMESPACE {

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

/// g·σ(factor·g).
HWY_INLINE ValueSlope swish(Vector g, Vector factor) {
  const Vector s = sigmoid(hn::Mul(factor, g)), value = hn::Mul(g, s);
  return {value, hn::MulAdd(hn::Mul(factor, value), hn::Sub(set(1), s), s)};
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

HWY_INLINE ValueSlope sigmoid_slope(Vector g) {
  const Vector s = hn::IfThenElse(hn::IsNaN(g), g, sigmoid(g));  // the others multiply by g, which keeps NaN
  return {s, hn::Mul(s, hn::Sub(set(1), s))};
}

template <Activation kind>
HWY_INLINE ValueSlope activate(Vector g) {
  if constexpr (kind == Activation::silu) return silu(g);
  if constexpr (kind == Activation::gelu) return gelu(g);
  if constexpr (kind == Activation::gelu_tanh) return gelu_tanh(g);
  if constexpr (kind == Activation::gelu_quick) return swish(g, set(1.702f));
  if constexpr (kind == Activation::relu) return relu(g);
  if constexpr (kind == Activation::relu2) return relu2(g);
  if constexpr (kind == Activation::sigmoid) return sigmoid_slope(g);
}

/// body(constant) with the activation as a constant of the compiler.
template <class Body>
HWY_INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::silu:
      return body(std::integral_constant<Activation, Activation::silu>());
    case Activation::gelu:
      return body(std::integral_constant<Activation, Activation::gelu>());
    case Activation::gelu_tanh:
      return body(std::integral_constant<Activation, Activation::gelu_tanh>());
    case Activation::gelu_quick:
      return body(std::integral_constant<Activation, Activation::gelu_quick>());
    case Activation::relu:
      return body(std::integral_constant<Activation, Activation::relu>());
    case Activation::relu2:
      return body(std::integral_constant<Activation, Activation::relu2>());
    case Activation::sigmoid:
      return body(std::integral_constant<Activation, Activation::sigmoid>());
  }
}

}  // namespace lquant::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
