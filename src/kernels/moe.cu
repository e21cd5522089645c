// Device code of moe_cuda.cpp: the order of tokens by expert, what they get back from their experts, and its gradients. Sums have one order, so
// equal inputs give equal bytes.
namespace lquant {

// Blocks of 1,024 threads, one an expert and one more, find that expert's choices among experts[count]: order[offsets[e] …] are their places,
// ascending. Each warp looks through its own part of them, first to count what stands before, then to place.
__device__ void sort_by_expert(const int* experts, int count, int* order, int* offsets) {
  constexpr int warps = 32;
  __shared__ int below[warps], equal[warps];
  const int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = (count + warps * 32 - 1) / (warps * 32) * 32, begin = min(warp * part, count), end = min(begin + part, count);
  int less = 0, same = 0;
  for (int i = begin + lane; i < end; i += 32) {
    less += experts[i] < expert;
    same += experts[i] == expert;
  }
  for (int other = 16; other > 0; other /= 2) {
    less += __shfl_xor_sync(0xffffffffu, less, other);
    same += __shfl_xor_sync(0xffffffffu, same, other);
  }
  if (lane == 0) below[warp] = less, equal[warp] = same;
  __syncthreads();
  int at = 0;
  for (int w = 0; w < warps; ++w) at += below[w];
  if (threadIdx.x == 0) offsets[expert] = at;
  for (int w = 0; w < warp; ++w) at += equal[w];
  for (int i = begin; i < end; i += 32) {
    const bool mine = i + lane < end && experts[i + lane] == expert;
    const unsigned int all = __ballot_sync(0xffffffffu, mine);
    if (mine) order[at + __popc(all & ((1u << lane) - 1))] = i + lane;
    at += __popc(all);
  }
}

// rows[order[r]] = r
__device__ void invert(const int* order, int count, int* rows) {
  const long r = thread_index();
  if (r < count) rows[order[r]] = r;
}

// out [T, width]: Σ_j weights[t, j] · y[rows[t, j]], with weights of 1 if there are none. A thread makes n columns of a token.
template <class T, int n>
__device__ void combine(const T* y, const float* weights, const int* rows, int tokens, int k, int width, T* out) {
  const long i = thread_index();
  const int parts = width / n, token = i / parts, part = i % parts;
  if (token >= tokens) return;
  float sums[n] = {};
  for (int j = 0; j < k; ++j) {
    const int choice = token * k + j;
    const float weight = weights ? weights[choice] : 1.0f;
    const Several<T, n> row = load<n>(y, static_cast<long>(rows[choice]) * parts + part);
#pragma unroll
    for (int c = 0; c < n; ++c) sums[c] += weight * static_cast<float>(row.at[c]);
  }
  Several<T, n> result;
#pragma unroll
  for (int c = 0; c < n; ++c) result.at[c] = static_cast<T>(sums[c]);
  store(result, out, i);
}

// The gradients of `combine` with weights, a warp for each row r of y: dy[r] = weight · dout[token], dweight = y[r] · dout[token].
template <class T, int n>
__device__ void combine_gradients(const T* y, const float* weights, const int* order, const T* dout, int count, int k, int width, T* dy, float* dweights) {
  const int row = thread_index() / 32, lane = threadIdx.x % 32, parts = width / n;
  if (row >= count) return;
  const int choice = order[row];
  const float weight = weights[choice];
  const long token = choice / k;
  float dot = 0;
  for (int part = lane; part < parts; part += 32) {
    const Several<T, n> slope = load<n>(dout, token * parts + part), value = load<n>(y, static_cast<long>(row) * parts + part);
    Several<T, n> result;
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const float d = static_cast<float>(slope.at[c]);
      result.at[c] = static_cast<T>(weight * d);
      dot += static_cast<float>(value.at[c]) * d;
    }
    store(result, dy, static_cast<long>(row) * parts + part);
  }
  for (int other = 16; other > 0; other /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, other);
  if (lane == 0) dweights[choice] = dot;
}

}  // namespace lquant
