// Device code of chunk_carry.cpp: a state S [keys, values] goes from chunk to chunk. Its columns do not meet, so a block has 16 of them in shared memory
// all along, beside what it reads of a chunk.
namespace lquant {

constexpr int kColumns = 16;
constexpr int kPadding = 4;  // behind each row of keys, so that rows begin in different banks

// Eight loads under way at a time.
__device__ void load_rows(float* to, const float* from, int rows, int keys) {
  constexpr int batch = 8;
  const int quads = keys / 4, step = blockDim.x;
  for (int first = threadIdx.x; first < rows * quads; first += batch * step) {
    float4 held[batch];
#pragma unroll
    for (int j = 0; j < batch; ++j)
      if (first + j * step < rows * quads) held[j] = reinterpret_cast<const float4*>(from)[first + j * step];
#pragma unroll
    for (int j = 0; j < batch; ++j) {
      const int i = first + j * step;
      if (i < rows * quads) *reinterpret_cast<float4*>(to + i / quads * (keys + kPadding) + i % quads * 4) = held[j];
    }
  }
}

// sum += factor · a
__device__ void add_times(float4& sum, float factor, const float4& a) {
  sum.x += factor * a.x;
  sum.y += factor * a.y;
  sum.z += factor * a.z;
  sum.w += factor * a.w;
}

// Forward, n = 0 … N − 1: c = first − x · S, S ← kept ⊙ S + yᵀ · c. Backward, n = N − 1 … 0: c = first + x · S, S ← added + kept ⊙ S − yᵀ · c.
// x and y [G, N, C, K], first and corrected [G, N, C, V], added and states (S in front of each step) [G, N, K, V], start and last [G, K, V].
template <bool backward>
__device__ void carry(float* shared, const float* x, const float* y, const float* kept, const float* first, const float* added, const float* start, int chunks,
                      int length, int keys, int values, bool each_key, float* corrected, float* states, float* last) {
  const int parts = (values + kColumns - 1) / kColumns, group = blockIdx.x / parts, column = blockIdx.x % parts * kColumns;
  const int line = keys + kPadding, pairs = keys / 4 * (kColumns / 2);
  constexpr float sign = backward ? 1.0f : -1.0f;
  float *of_x = shared, *of_y = of_x + length * line, *state = of_y + length * line, *c = state + keys * kColumns;
  for (int i = threadIdx.x; i < keys * kColumns; i += blockDim.x) {
    const int at = column + i % kColumns;
    state[i] = at < values ? start[(static_cast<long>(group) * keys + i / kColumns) * values + at] : 0.0f;
  }
  for (int step = 0; step < chunks; ++step) {
    const long n = static_cast<long>(group) * chunks + (backward ? chunks - 1 - step : step);
    load_rows(of_x, x + n * length * keys, length, keys);
    load_rows(of_y, y + n * length * keys, length, keys);
    __syncthreads();
    for (int i = threadIdx.x; i < keys * kColumns; i += blockDim.x)
      if (column + i % kColumns < values) states[(n * keys + i / kColumns) * values + column + i % kColumns] = state[i];
    // Four columns of a row of c at a time.
    for (int i = threadIdx.x; i < length * (kColumns / 4); i += blockDim.x) {
      const int row = i / (kColumns / 4), own = i % (kColumns / 4) * 4;
      const bool inside = column + own < values;
      const long at = (n * length + row) * values + column + own;
      float4 sum = inside ? *reinterpret_cast<const float4*>(first + at) : float4{0, 0, 0, 0};
      for (int d = 0; d < keys; d += 4) {
        const float4 a = *reinterpret_cast<const float4*>(of_x + row * line + d);
        const float4* s = reinterpret_cast<const float4*>(state + d * kColumns + own);
        add_times(sum, sign * a.x, s[0]);
        add_times(sum, sign * a.y, s[kColumns / 4]);
        add_times(sum, sign * a.z, s[2 * kColumns / 4]);
        add_times(sum, sign * a.w, s[3 * kColumns / 4]);
      }
      *reinterpret_cast<float4*>(c + row * kColumns + own) = sum;
      if (inside) *reinterpret_cast<float4*>(corrected + at) = sum;
    }
    __syncthreads();
    // Four rows and two columns of S at a time, which no other thread reads meanwhile.
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
      const int row = i / (kColumns / 2) * 4, own = i % (kColumns / 2) * 2;
      float4 left = {0, 0, 0, 0}, right = {0, 0, 0, 0};
      for (int r = 0; r < length; ++r) {
        const float4 a = *reinterpret_cast<const float4*>(of_y + r * line + row);
        add_times(left, c[r * kColumns + own], a);
        add_times(right, c[r * kColumns + own + 1], a);
      }
      const float sums[2][4] = {{left.x, left.y, left.z, left.w}, {right.x, right.y, right.z, right.w}};
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& s = state[(row + k) * kColumns + own + j];
          const int at = column + own + j;
          const float other = backward && at < values ? added[(n * keys + row + k) * values + at] : 0.0f;
          s = other + kept[each_key ? n * keys + row + k : n] * s - sign * sums[j][k];
        }
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < keys * kColumns; i += blockDim.x)
    if (column + i % kColumns < values) last[(static_cast<long>(group) * keys + i / kColumns) * values + column + i % kColumns] = state[i];
}

}  // namespace lquant
