// Device code of gated_cuda.cpp: y = act(g) · u and its gradients, from g and u alone, so that the backward pass keeps
// nothing else; and the same without u. Eight elements belong to a thread where rows divide by eight, else one.
namespace lquant {

enum Act { silu, gelu, gelu_tanh, gelu_quick, relu, relu2, sigmoid };

__device__ float logistic(float x) { return 1 / (1 + expf(-x)); }

// act(g) and its derivative; sums are rounded by themselves, so that every function here gets the same numbers.
template <int act>
__device__ float2 activated(float g) {
  if constexpr (act == silu || act == gelu_quick) {
    constexpr float k = act == silu ? 1.0f : 1.702f;
    const float s = logistic(k * g);
    return {g * s, __fadd_rn(s, k * g * s * (1 - s))};
  } else if constexpr (act == gelu) {
    const float phi = 0.5f * (1 + erff(g * 0.70710678118654752f));
    return {g * phi, __fadd_rn(phi, g * 0.3989422804014327f * expf(-0.5f * g * g))};
  } else if constexpr (act == gelu_tanh) {
    // (1 + tanh v) / 2 = σ(2 v), v = √(2/π) (g + 0.044715 g³)
    constexpr float twice = 1.5957691216057308f;
    const float s = logistic(twice * (g + 0.044715f * g * g * g));
    return {g * s, __fadd_rn(s, g * s * (1 - s) * twice * (1 + 3 * 0.044715f * g * g))};
  } else if constexpr (act == relu) {
    return {g < 0 ? 0.0f : g, g > 0 ? 1.0f : 0.0f};  // NaN stays NaN
  } else if constexpr (act == relu2) {
    const float r = g < 0 ? 0.0f : g;
    return {r * r, 2 * r};
  } else {
    const float s = logistic(g);
    return {s, s * (1 - s)};
  }
}

template <class T, int act, int n>
__device__ void gated(const T* gate, const T* up, int count, T* y) {
  const long i = thread_index();
  if (i >= count) return;
  const Several<T, n> g = load<n>(gate, i), u = load<n>(up, i);
  Several<T, n> out;
#pragma unroll
  for (int k = 0; k < n; ++k) out.at[k] = static_cast<T>(activated<act>(static_cast<float>(g.at[k])).x * static_cast<float>(u.at[k]));
  store(out, y, i);
}

template <class T, int act, int n>
__device__ void gated_gradients(const T* gate, const T* up, const T* dy, int count, T* dgate, T* dup) {
  const long i = thread_index();
  if (i >= count) return;
  const Several<T, n> g = load<n>(gate, i), u = load<n>(up, i);
  const Several<T, n> d = load<n>(dy, i);
  Several<T, n> dg, du;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float2 a = activated<act>(static_cast<float>(g.at[k]));
    const float slope = static_cast<float>(d.at[k]);
    dg.at[k] = static_cast<T>(slope * static_cast<float>(u.at[k]) * a.y);
    du.at[k] = static_cast<T>(slope * a.x);
  }
  store(dg, dgate, i);
  store(du, dup, i);
}

template <class T, int act, int n>
__device__ void activate(const T* x, int count, T* y) {
  const long i = thread_index();
  if (i >= count) return;
  const Several<T, n> v = load<n>(x, i);
  Several<T, n> out;
#pragma unroll
  for (int k = 0; k < n; ++k) out.at[k] = static_cast<T>(activated<act>(static_cast<float>(v.at[k])).x);
  store(out, y, i);
}

template <class T, int act, int n>
__device__ void activate_gradient(const T* x, const T* dy, int count, T* dx) {
  const long i = thread_index();
  if (i >= count) return;
  const Several<T, n> v = load<n>(x, i), d = load<n>(dy, i);
  Several<T, n> out;
#pragma unroll
  for (int k = 0; k < n; ++k) out.at[k] = static_cast<T>(static_cast<float>(d.at[k]) * activated<act>(static_cast<float>(v.at[k])).y);
  store(out, dx, i);
}

}  // namespace lquant
