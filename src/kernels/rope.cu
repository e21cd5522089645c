// Device code of rope_cuda.cpp. A thread makes the sines and cosines of n pairs of a token once for all heads; n features go by one load.
namespace lquant {

// x and y [tokens, heads, width], tokens being rows of `length`: pairs (f, f + pairs) or (2f, 2f + 1) turn by position · inv_freq[f] times `sign`, −1 for
// gradients; what stands behind is copied.
template <class T, bool interleaved, int n>
__device__ void rotate(const T* x, const float* inv_freq, const int* positions, int offset, float magnitude, float sign, int tokens, int length, int heads,
                       int width, int pairs, T* y) {
  const int threads = pairs / n;
  const long i = thread_index();
  const int token = i / threads, own = i % threads, f = own * n;
  if (token >= tokens) return;
  const float position = positions ? positions[token] : offset + token % length;
  float cosine[n], sine[n];
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float angle = position * inv_freq[f + k];
    cosine[k] = cosf(angle) * magnitude;
    sine[k] = sinf(angle) * magnitude * sign;
  }
  for (int head = 0; head < heads; ++head) {
    const long at = (static_cast<long>(token) * heads + head) * width;
    const T* from = x + at;
    T* to = y + at;
    for (int c = 2 * pairs + own; c < width; c += threads) to[c] = from[c];
    if constexpr (interleaved) {
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const float a = static_cast<float>(from[2 * (f + k)]), b = static_cast<float>(from[2 * (f + k) + 1]);
        to[2 * (f + k)] = static_cast<T>(a * cosine[k] - b * sine[k]);
        to[2 * (f + k) + 1] = static_cast<T>(a * sine[k] + b * cosine[k]);
      }
    } else {
      Several<T, n> first = load<n>(from, own), second = load<n>(from + pairs, own);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const float a = static_cast<float>(first.at[k]), b = static_cast<float>(second.at[k]);
        first.at[k] = static_cast<T>(a * cosine[k] - b * sine[k]);
        second.at[k] = static_cast<T>(a * sine[k] + b * cosine[k]);
      }
      store(first, to, own);
      store(second, to + pairs, own);
    }
  }
}

}  // namespace lquant
