// Device code of norm_cuda.cpp: root-mean-square norms of rows, a warp for each row. Of the weight the backward pass makes nothing: weights of norms
// are not trained.
namespace lquant {

__device__ float sum_of_warp(float x) {
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

// Of element c: the weight and its offset, rounded as the weight is stored; 1 without a weight.
template <class W>
__device__ float factor(const W* weight, float offset, int c) {
  return weight ? static_cast<float>(static_cast<W>(static_cast<float>(weight[c]) + offset)) : 1.0f;
}

// y = x / sqrt(mean(x²) + eps), rounded, times the factor, rounded.
template <class T, class W, int n>
__device__ void rms_norm(const T* x, const W* weight, float eps, float offset, int rows, int width, T* y) {
  const int row = thread_index() / 32, lane = threadIdx.x % 32, parts = width / n;
  if (row >= rows) return;
  const T* from = x + static_cast<long>(row) * width;
  float squares = 0;
  for (int part = lane; part < parts; part += 32) {
    const Several<T, n> v = load<n>(from, part);
#pragma unroll
    for (int c = 0; c < n; ++c) squares += static_cast<float>(v.at[c]) * static_cast<float>(v.at[c]);
  }
  const float scale = 1 / sqrtf(sum_of_warp(squares) / width + eps);
  for (int part = lane; part < parts; part += 32) {
    Several<T, n> v = load<n>(from, part);
#pragma unroll
    for (int c = 0; c < n; ++c) {
      v.at[c] = static_cast<T>(static_cast<float>(v.at[c]) * scale);
      if (weight) v.at[c] = static_cast<T>(static_cast<float>(v.at[c]) * factor(weight, offset, part * n + c));
    }
    store(v, y + static_cast<long>(row) * width, part);
  }
}

// dx = r · (g − x · r² · mean(g · x)), g = dy · factor, r = 1 / sqrt(mean(x²) + eps).
template <class T, class W, int n>
__device__ void rms_norm_gradient(const T* x, const W* weight, const T* dy, float eps, float offset, int rows, int width, T* dx) {
  const int row = thread_index() / 32, lane = threadIdx.x % 32, parts = width / n;
  if (row >= rows) return;
  const T *from = x + static_cast<long>(row) * width, *slopes = dy + static_cast<long>(row) * width;
  float squares = 0, dot = 0;
  for (int part = lane; part < parts; part += 32) {
    const Several<T, n> v = load<n>(from, part), d = load<n>(slopes, part);
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const float value = static_cast<float>(v.at[c]);
      squares += value * value;
      dot += value * __fmul_rn(static_cast<float>(d.at[c]), factor(weight, offset, part * n + c));
    }
  }
  const float scale = 1 / sqrtf(sum_of_warp(squares) / width + eps), back = sum_of_warp(dot) / width * scale * scale;
  for (int part = lane; part < parts; part += 32) {
    const Several<T, n> v = load<n>(from, part), d = load<n>(slopes, part);
    Several<T, n> out;
#pragma unroll
    for (int c = 0; c < n; ++c) {
      // Rounded by itself, so that factors of 1 give what no factors give.
      const float slope = __fmul_rn(static_cast<float>(d.at[c]), factor(weight, offset, part * n + c));
      out.at[c] = static_cast<T>(scale * (slope - static_cast<float>(v.at[c]) * back));
    }
    store(out, dx + static_cast<long>(row) * width, part);
  }
}

}  // namespace lquant
