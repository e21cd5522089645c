// Device code of head_rows.cpp: the divergence of two rows of logits and its gradient. A thread block takes a row, which
// is read twice: once for both maxima, both sums of exponentials and the sum of differences (all corrected whenever a
// maximum grows), and, out of the cache, once more for the gradient.
namespace lquant {

constexpr int kWide = 8;

// What makes a logit of a product: multiplier, softcap (0: none), 1 / temperature.
struct Finish {
  float multiplier, softcap, cold;
  __device__ float operator()(float z) const {
    z *= multiplier;
    if (softcap != 0) z = softcap * tanhf(z / softcap);
    return z * cold;
  }
  // d logit / d product, of the product.
  __device__ float slope(float z) const {
    if (softcap == 0) return multiplier * cold;
    const float t = tanhf(z * multiplier / softcap);
    return multiplier * cold * (1 - t * t);
  }
};

// Largest logit and Σ exp(z − largest) of student and teacher, and Σ exp(z_t − largest_t) · (z_t − z_s).
struct Seen {
  float largest_s, sum_s, largest_t, sum_t, apart;
};

__device__ Seen joined(const Seen& a, const Seen& b) {
  const float s = fmaxf(a.largest_s, b.largest_s), t = fmaxf(a.largest_t, b.largest_t);
  const float at = expf(a.largest_t - t), bt = expf(b.largest_t - t);
  return {s, a.sum_s * expf(a.largest_s - s) + b.sum_s * expf(b.largest_s - s), t, a.sum_t * at + b.sum_t * bt, a.apart * at + b.apart * bt};
}

// Numbers far below all logits, for −∞ − −∞ is none.
__device__ Seen nothing() { return {-1e30f, 0, -1e30f, 0, 0}; }

__device__ Seen of_lane(const Seen& x, int other) {
  return {__shfl_xor_sync(0xffffffffu, x.largest_s, other), __shfl_xor_sync(0xffffffffu, x.sum_s, other),
          __shfl_xor_sync(0xffffffffu, x.largest_t, other), __shfl_xor_sync(0xffffffffu, x.sum_t, other),
          __shfl_xor_sync(0xffffffffu, x.apart, other)};
}

__device__ Seen of_block(Seen x) {
  __shared__ Seen warps[32];
  for (int other = 16; other > 0; other /= 2) x = joined(x, of_lane(x, other));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = blockDim.x / 32;
  if (lane == 0) warps[warp] = x;
  __syncthreads();
  x = lane < count ? warps[lane] : nothing();
  for (int other = 16; other > 0; other /= 2) x = joined(x, of_lane(x, other));
  return x;
}

template <int n>
__device__ void see(const float (&zs)[n], const float (&zt)[n], Seen& x) {
  float s = x.largest_s, t = x.largest_t;
#pragma unroll
  for (int i = 0; i < n; ++i) s = fmaxf(s, zs[i]), t = fmaxf(t, zt[i]);
  const float shrunk = expf(x.largest_t - t);
  x.sum_s *= expf(x.largest_s - s);
  x.sum_t *= shrunk;
  x.apart *= shrunk;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float p = expf(zt[i] - t);
    x.sum_s += expf(zs[i] - s);
    x.sum_t += p;
    x.apart += p * (zt[i] - zs[i]);
  }
  x.largest_s = s;
  x.largest_t = t;
}

// S and T: dtypes of the products. width logits a row; the gradient in S.
template <class S, class T, bool gradient, bool wide>
__device__ void divergence(const S* student, const T* teacher, const float* mask, const Finish& of_student, const Finish& of_teacher, int width,
                           float* loss, S* slopes) {
  const long row = blockIdx.x;
  const S* zs = student + row * width;
  const T* zt = teacher + row * width;
  constexpr int n = wide ? kWide : 1;
  const int steps = width / n;
  const float weight = mask[row];
  if (weight == 0) {
    if (threadIdx.x == 0) loss[row] = 0;
    if constexpr (gradient)
      for (int i = threadIdx.x; i < width; i += blockDim.x) slopes[row * width + i] = static_cast<S>(0.0f);
    return;
  }
  Seen x = nothing();
  for (int i = threadIdx.x; i < steps; i += blockDim.x) {
    float a[n], b[n];
    if constexpr (wide) {
      const Several<S, n> ws = load<n>(zs, i);
      const Several<T, n> wt = load<n>(zt, i);
#pragma unroll
      for (int k = 0; k < n; ++k) a[k] = of_student(static_cast<float>(ws.at[k])), b[k] = of_teacher(static_cast<float>(wt.at[k]));
    } else {
      a[0] = of_student(static_cast<float>(zs[i])), b[0] = of_teacher(static_cast<float>(zt[i]));
    }
    see(a, b, x);
  }
  x = of_block(x);
  const float log_s = x.largest_s + logf(x.sum_s), log_t = x.largest_t + logf(x.sum_t);
  if (threadIdx.x == 0) loss[row] = weight * (x.apart / x.sum_t - log_t + log_s);
  if constexpr (gradient) {
    for (int i = threadIdx.x; i < steps; i += blockDim.x) {
      if constexpr (wide) {
        const Several<S, n> ws = load<n>(zs, i);
        const Several<T, n> wt = load<n>(zt, i);
        Several<S, n> out;
#pragma unroll
        for (int k = 0; k < n; ++k) {
          const float z = static_cast<float>(ws.at[k]);
          const float apart = expf(of_student(z) - log_s) - expf(of_teacher(static_cast<float>(wt.at[k])) - log_t);
          out.at[k] = static_cast<S>(weight * of_student.slope(z) * apart);
        }
        store(out, slopes + row * width, i);
      } else {
        const float z = static_cast<float>(zs[i]);
        const float apart = expf(of_student(z) - log_s) - expf(of_teacher(static_cast<float>(zt[i])) - log_t);
        slopes[row * width + i] = static_cast<S>(weight * of_student.slope(z) * apart);
      }
    }
  }
}

}  // namespace lquant
