// Device code of causal_conv_cuda.cpp: a few taps of each channel. A thread goes along some tokens of its channels with the last ones in registers, so
// that each is read once but for those in front of a run.
namespace lquant {

constexpr int kRun = 16;  // tokens that a thread makes

// Forward: y_t = Σ_b taps[c, K − 1 − b] · x[t − b], t ascending. Backward: the same of dy with t + b, t descending: dx. What belongs to another text is 0;
// segments (or null) differ where one begins. Threads: n channels of a run of a row [T, C].
template <class T, int n, int taps_count, bool backward>
__device__ void causal_conv(const T* x, const float* taps, const int* segments, int rows, int tokens, int channels, T* y) {
  const int parts = channels / n, runs = (tokens + kRun - 1) / kRun;
  const long i = thread_index();
  const int part = i % parts, run = i / parts % runs, row = i / parts / runs;
  if (row >= rows) return;
  float tap[taps_count][n], window[taps_count][n] = {};  // window[b]: b tokens back, or ahead
#pragma unroll
  for (int b = 0; b < taps_count; ++b)
#pragma unroll
    for (int c = 0; c < n; ++c) tap[b][c] = taps[(part * n + c) * taps_count + taps_count - 1 - b];
  const int first = run * kRun, last = min(first + kRun, tokens) - 1, steps = last - first + taps_count;
  for (int step = 0; step < steps; ++step) {
    const int t = backward ? last + taps_count - 1 - step : first - (taps_count - 1) + step;
    if (t < 0 || t >= tokens) continue;
    // Between this token and the one before it in this direction.
    const int later = backward ? t + 1 : t;
    const long at = static_cast<long>(row) * tokens;
    const bool border = segments && later > 0 && later < tokens && segments[at + later] != segments[at + later - 1];
    const Several<T, n> now = load<n>(x, (at + t) * parts + part);
#pragma unroll
    for (int b = taps_count - 1; b > 0; --b)
#pragma unroll
      for (int c = 0; c < n; ++c) window[b][c] = border ? 0.0f : window[b - 1][c];
#pragma unroll
    for (int c = 0; c < n; ++c) window[0][c] = static_cast<float>(now.at[c]);
    if (t < first || t > last) continue;
    Several<T, n> out;
#pragma unroll
    for (int c = 0; c < n; ++c) {
      float sum = 0;
#pragma unroll
      for (int b = 0; b < taps_count; ++b) sum += tap[b][c] * window[b][c];
      out.at[c] = static_cast<T>(sum);
    }
    store(out, y, (at + t) * parts + part);
  }
}

}  // namespace lquant
