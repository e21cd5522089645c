// Device code of descent.cpp: what one thread does. The kernels around it are written by cuda_module.cpp.
//
// Eight consecutive weights belong to a thread, for 8 latents are one 16-byte load; the 4, 8 or 16 threads of a group
// are neighbours in a warp and add their sums by shuffles. Every thread of a group then computes the group's few
// numbers, which costs less than handing them round; the first one writes them.
namespace lquant {

constexpr int kPerThread = 8;
constexpr float kBeta1 = 0.9f, kBeta2 = 0.95f, kAdamTiny = 1e-20f, kLatentTiny = 1e-30f;

using Latents = Several<unsigned short, kPerThread>;

// A value as it is stored. The products below are rounded before the sums, as MLX's own dequantization does on a CPU.
template <class T>
__device__ float stored(float x) {
  return static_cast<float>(static_cast<T>(x));
}

template <int group>
__device__ float sum_of_group(float x) {
#pragma unroll
  for (int other = group / kPerThread / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

// s = s0 (1 + a / r)
__device__ float scale_of(float s0, float a, float inverse_spread) { return __fmul_rn(s0, __fadd_rn(__fmul_rn(a, inverse_spread), 1.0f)); }

// b = b0 + s0 (c − p a / r)
__device__ float bias_of(float s0, float b0, float pivot, float a, float c, float inverse_spread) {
  return __fadd_rn(b0, __fmul_rn(s0, __fsub_rn(c, __fmul_rn(__fmul_rn(pivot, a), inverse_spread))));
}

template <class T, int bits, int group>
__device__ void weight(const unsigned short* u, const float* s0, const float* b0, const float* pivot, const float* a, const float* c,
                       float inverse_spread, int count, T* w) {
  const long thread = thread_index();
  if (thread >= count) return;
  const long g = thread * kPerThread / group;
  const float scale = stored<T>(scale_of(s0[g], a[g], inverse_spread));
  const float bias = stored<T>(bias_of(s0[g], b0[g], pivot[g], a[g], c[g], inverse_spread));
  const Latents own = load<kPerThread>(u, thread);
  Several<T, kPerThread> out;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float code = static_cast<float>(own.at[i] >> (16 - bits));
    out.at[i] = static_cast<T>(__fadd_rn(stored<T>(__fmul_rn(code, scale)), bias));
  }
  store(out, w, thread);
}

// Σ dW·q, Σ dW and Σ dW² of the thread's group.
struct Sums {
  float scaled, plain, squares;
};

template <int bits, int group>
__device__ Sums sums_of_group(const Latents& u, const float (&d)[kPerThread]) {
  Sums sums = {0, 0, 0};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    sums.scaled += d[i] * static_cast<float>(u.at[i] >> (16 - bits));
    sums.plain += d[i];
    sums.squares += d[i] * d[i];
  }
  return {sum_of_group<group>(sums.scaled), sum_of_group<group>(sums.plain), sum_of_group<group>(sums.squares)};
}

// The thread's latents and gradients; zeros beyond the end, for of a warp all threads take part in every shuffle.
template <class D>
__device__ Latents load_both(const D* dw, const unsigned short* u, long thread, bool inside, float (&d)[kPerThread]) {
  Latents own = {};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) d[i] = 0;
  if (!inside) return own;
  own = load<kPerThread>(u, thread);
  const Several<D, kPerThread> slopes = load<kPerThread>(dw, thread);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) d[i] = static_cast<float>(slopes.at[i]);
  return own;
}

template <class D, int bits, int group>
__device__ void gradients(const D* dw, const unsigned short* u, int count, float* ds, float* db) {
  const long thread = thread_index();
  const bool inside = thread < count;
  float d[kPerThread];
  const Latents own = load_both(dw, u, thread, inside, d);
  const Sums sums = sums_of_group<bits, group>(own, d);
  if (!inside || thread * kPerThread % group != 0) return;
  const long g = thread * kPerThread / group;
  ds[g] = sums.scaled;
  db[g] = sums.plain;
}

// One of Adam's parameters with its moments; step = rate / (1 − β1^t), correction = 1 − β2^t.
struct Adam {
  float value, m, v;
};

__device__ Adam adam(Adam now, float gradient, float step, float correction) {
  const float m = now.m * kBeta1 + gradient * (1 - kBeta1);
  const float v = now.v * kBeta2 + gradient * gradient * (1 - kBeta2);
  return {now.value - m * step / (sqrtf(v / correction) + kAdamTiny), m, v};
}

// Adam's step of the scales and biases of group g from its sums.
__device__ void step_group(long g, const Sums& sums, const float* s0, const float* pivot, const float* a, const float* c, const float* ma,
                           const float* va, const float* mc, const float* vc, float inverse_spread, float adam_step, float correction, float* next_a,
                           float* next_c, float* next_ma, float* next_va, float* next_mc, float* next_vc) {
  const Adam of_a = adam({a[g], ma[g], va[g]}, s0[g] * inverse_spread * (sums.scaled - pivot[g] * sums.plain), adam_step, correction);
  const Adam of_c = adam({c[g], mc[g], vc[g]}, s0[g] * sums.plain, adam_step, correction);
  next_a[g] = of_a.value, next_ma[g] = of_a.m, next_va[g] = of_a.v;
  next_c[g] = of_c.value, next_mc[g] = of_c.m, next_vc[g] = of_c.v;
}

// adam_step = rate / (1 − β1^t); code_step in codes of these bits; correction = 1 − β2^t.
template <class D, int bits, int group>
__device__ void step(const D* dw, const unsigned short* u, const float* s0, const float* pivot, const float* a, const float* c, const float* ma,
                     const float* va, const float* mc, const float* vc, const float* v, float inverse_spread, float adam_step, float code_step,
                     float correction, int count, unsigned short* next_u, float* next_a, float* next_c, float* next_ma, float* next_va,
                     float* next_mc, float* next_vc, float* next_v) {
  const long thread = thread_index();
  const bool inside = thread < count;
  float d[kPerThread];
  const Latents own = load_both(dw, u, thread, inside, d);
  const Sums sums = sums_of_group<bits, group>(own, d);
  if (!inside) return;
  const long g = thread * kPerThread / group;
  const float scale = scale_of(s0[g], a[g], inverse_spread);
  const float mean_square = v[g] * kBeta2 + sums.squares / group * (1 - kBeta2);
  const float rms = fmaxf(sqrtf(mean_square / correction), kLatentTiny);
  const float sign = scale > 0 ? 1.0f : scale < 0 ? -1.0f : 0.0f;
  const float factor = sign * (code_step * static_cast<float>(1 << (16 - bits))) / rms;
  Latents moved;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float to = rintf(static_cast<float>(own.at[i]) - d[i] * factor);
    moved.at[i] = static_cast<unsigned short>(fminf(fmaxf(to, 0.0f), 65535.0f));
  }
  store(moved, next_u, thread);
  if (thread * kPerThread % group != 0) return;
  step_group(g, sums, s0, pivot, a, c, ma, va, mc, vc, inverse_spread, adam_step, correction, next_a, next_c, next_ma, next_va, next_mc, next_vc);
  next_v[g] = mean_square;
}

// The same where codes stay.
template <class D, int bits, int group>
__device__ void step_of_scales(const D* dw, const unsigned short* u, const float* s0, const float* pivot, const float* a, const float* c,
                               const float* ma, const float* va, const float* mc, const float* vc, float inverse_spread, float adam_step,
                               float correction, int count, float* next_a, float* next_c, float* next_ma, float* next_va, float* next_mc,
                               float* next_vc) {
  const long thread = thread_index();
  const bool inside = thread < count;
  float d[kPerThread];
  const Latents own = load_both(dw, u, thread, inside, d);
  const Sums sums = sums_of_group<bits, group>(own, d);
  if (!inside || thread * kPerThread % group != 0) return;
  step_group(thread * kPerThread / group, sums, s0, pivot, a, c, ma, va, mc, vc, inverse_spread, adam_step, correction, next_a, next_c, next_ma,
             next_va, next_mc, next_vc);
}

// The same from sums of several parts of a batch, a thread a group.
__device__ void step_from_sums(const float* ds, const float* db, const float* s0, const float* pivot, const float* a, const float* c, const float* ma,
                               const float* va, const float* mc, const float* vc, float inverse_spread, float adam_step, float correction, int groups,
                               float* next_a, float* next_c, float* next_ma, float* next_va, float* next_mc, float* next_vc) {
  const long g = thread_index();
  if (g >= groups) return;
  step_group(g, {ds[g], db[g], 0}, s0, pivot, a, c, ma, va, mc, vc, inverse_spread, adam_step, correction, next_a, next_c, next_ma, next_va, next_mc,
             next_vc);
}

}  // namespace lquant
