// Device code of feedback_gpu.cpp. It does what feedback_cpu.cpp does, row by row: same rounding of values, same tests for
// taking a change.
//
// Eight lanes share a row, so that what a row's column costs once (a division, rounding) is paid once for the four rows of
// a warp, while each lane's part of a row stays in registers. Lane l of 8 holds columns 32·t + 4·l + c (c < 4) in
// x[4·t + c]: its four neighbours are one 16-byte load from the square matrix in shared memory. Loops over t and c are
// unrolled since registers have no index; only the loop over lanes runs.
//
// Every lane of a warp takes part in every shuffle: rows beyond the last work on the last row again and write nothing, and
// rows that change nothing add zeros.
namespace lquant {

constexpr int kLanes = 8;

// No fused multiply-add where the result must be what dequantization gives: it rounds the product and then the sum.
template <class S>
__device__ float rounded(float x) {
  return static_cast<float>(static_cast<S>(x));
}

template <class S>
__device__ float value_of(float q, float scale, float bias) {
  return rounded<S>(__fadd_rn(rounded<S>(__fmul_rn(scale, q)), bias));
}

__device__ float nearest(float x, float scale, float bias, float top) {
  float q = rintf(__fdiv_rn(__fsub_rn(x, bias), scale));
  q = q > 0 ? q : 0;  // NaN too
  return q < top ? q : top;
}

__device__ float from(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane, kLanes); }

__device__ float sum_over_lanes(float x) {
  for (int other = kLanes / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other, kLanes);
  return x;
}

template <int m>
__device__ float sum(const float (&x)[m]) {
  float s = 0;
#pragma unroll
  for (int i = 0; i < m; ++i) s += x[i];
  return sum_over_lanes(s);
}

template <int m>
__device__ float dot(const float (&x)[m], const float (&y)[m]) {
  float s = 0;
#pragma unroll
  for (int i = 0; i < m; ++i) s += x[i] * y[i];
  return sum_over_lanes(s);
}

// y += factor · row, from the column 32 · first on.
template <int first, int m>
__device__ void add_row(const float* row, int lane, float factor, float (&y)[m]) {
#pragma unroll
  for (int t = first; t < m / 4; ++t) {
    const float4 h = reinterpret_cast<const float4*>(row)[kLanes * t + lane];
    y[4 * t] += factor * h.x;
    y[4 * t + 1] += factor * h.y;
    y[4 * t + 2] += factor * h.z;
    y[4 * t + 3] += factor * h.w;
  }
}

// y = x · h.
template <int n, int m>
__device__ void times(const float* h, int lane, const float (&x)[m], float (&y)[m]) {
#pragma unroll
  for (int i = 0; i < m; ++i) y[i] = 0;
#pragma unroll
  for (int t = 0; t < n / 32; ++t) {
#pragma unroll 1
    for (int l = 0; l < kLanes; ++l) {
#pragma unroll
      for (int c = 0; c < 4; ++c) add_row<0>(h + (32 * t + 4 * l + c) * n, lane, from(x[4 * t + c], l), y);
    }
  }
}

// x = high + low exactly, high of 11 bits.
__device__ void split(float x, float& high, float& low) {
  high = __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
  low = __fsub_rn(x, high);
}

__device__ int column_of(int i, int lane) { return i / 4 * 32 + 4 * lane + i % 4; }

// Columns 32·t to 32·t + 31 of a row and, after them, the others.
template <class S, int n, int t, int m>
__device__ void round_columns(const float* inside, const S* scales, const S* biases, const int* group, float top, int lane, const float (&w)[m],
                              float (&aim)[m], float (&q)[m], float (&e)[m]) {
#pragma unroll 1
  for (int l = 0; l < kLanes; ++l) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      constexpr int base = 4 * t;
      const int j = 32 * t + 4 * l + c;
      const float scale = static_cast<float>(scales[group[j]]), bias = static_cast<float>(biases[group[j]]);
      const float code = nearest(from(aim[base + c], l), scale, bias, top);
      const float error = __fsub_rn(from(w[base + c], l), value_of<S>(code, scale, bias));
      if (lane == l) q[base + c] = code, e[base + c] = error;
      add_row<t>(inside + j * n, lane, error, aim);  // columns up to j get it too, and are not read again
    }
  }
  if constexpr (32 * (t + 1) < n) round_columns<S, n, t + 1>(inside, scales, biases, group, top, lane, w, aim, q, e);
}

// Scale and bias to their joint optimum, if they lower the error as they will be stored. e are the errors, r = errors · H at the group's columns.
template <class S, int n, int m>
__device__ void refit(const float* h, float total, int lane, const float (&w)[m], const float (&q)[m], float (&e)[m], float (&r)[m], float& scale,
                      float& bias) {
  float d[m], hd[m];
  times<n>(h, lane, q, hd);
  const float a = dot(q, hd), mixed = sum(hd), rq = dot(r, q), r1 = sum(r);
  const double determinant = static_cast<double>(a) * total - static_cast<double>(mixed) * mixed;
  const bool solvable = determinant > 1e-5 * static_cast<double>(a) * total;
  const float ds = static_cast<float>((static_cast<double>(total) * rq - static_cast<double>(mixed) * r1) / determinant);
  const float new_scale = rounded<S>(scale + ds);
  const float new_bias = rounded<S>(bias + (r1 - mixed * (new_scale - scale)) / total);
  const bool moved = solvable && fabsf(new_scale) > 0 && !(new_scale == scale && new_bias == bias);
#pragma unroll
  for (int i = 0; i < m; ++i) d[i] = __fsub_rn(__fsub_rn(w[i], value_of<S>(q[i], new_scale, new_bias)), e[i]);
  times<n>(h, lane, d, hd);
  const float change = 2 * dot(r, d) + dot(d, hd);
  if (!(moved && change < 0)) return;
  scale = new_scale;
  bias = new_bias;
#pragma unroll
  for (int i = 0; i < m; ++i) e[i] += d[i], r[i] += hd[i];
}

// Each code in turn to the best for all other weights as they stand.
template <class S, int n, int m>
__device__ void recode(const float* h, int lane, float top, float scale, float bias, const float (&w)[m], float (&q)[m], float (&e)[m],
                       float (&r)[m]) {
#pragma unroll
  for (int t = 0; t < n / 32; ++t) {
#pragma unroll 1
    for (int l = 0; l < kLanes; ++l) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int i = 4 * t + c, j = 32 * t + 4 * l + c;
        const float own = h[j * n + j], slope = from(r[i], l), now = from(__fsub_rn(w[i], e[i]), l), before = from(q[i], l);
        const float code = nearest(now + slope / own, scale, bias, top);
        float d = __fsub_rn(now, value_of<S>(code, scale, bias));
        const bool taken = own > 0 && code != before && d * (2 * slope + own * d) < 0;
        d = taken ? d : 0.0f;
        if (taken && lane == l) q[i] = code, e[i] += d;
        add_row<0>(h + j * n, lane, d, r);
      }
    }
  }
}

// What inside a block of n columns follows of each code, a row to eight lanes. w, fed [rows, n] (what earlier columns' errors add to w), inside
// [n, n], scales, biases [rows, groups], group [n]. Out: codes, the errors' parts high and low [rows, n]. square: shared, [n, n].
template <class S, int n>
__device__ void feedback(float* square, const float* w, const float* fed, const float* inside, const S* scales, const S* biases, const int* group,
                         float top, int rows, int groups, unsigned char* codes, float* high, float* low) {
  constexpr int m = n / kLanes;
  for (int i = threadIdx.x; i < n * n; i += blockDim.x) square[i] = inside[i];
  __syncthreads();
  const int lane = threadIdx.x % kLanes;
  const int turn = thread_index() / kLanes;
  const long row = turn < rows ? turn : rows - 1;
  float weights[m], aim[m], q[m], e[m];
#pragma unroll
  for (int i = 0; i < m; ++i) {
    const long at = row * n + column_of(i, lane);
    weights[i] = w[at];
    aim[i] = __fadd_rn(weights[i], fed[at]);
  }
  round_columns<S, n, 0>(square, scales + row * groups, biases + row * groups, group, top, lane, weights, aim, q, e);
  if (turn >= rows) return;
#pragma unroll
  for (int i = 0; i < m; ++i) {
    const long at = row * n + column_of(i, lane);
    codes[at] = static_cast<unsigned char>(q[i]);
    split(e[i], high[at], low[at]);
  }
}

constexpr int kWidth = 256;       // columns that a launch refines, at most
constexpr int kRowsPerBlock = 16;  // of threads: 128 of them, a row to eight lanes

// Floats of shared memory that refine needs: a square of H, and of each row the slopes of all columns and the changes of one group's errors.
__device__ constexpr int refine_floats(int n) { return n * n + kRowsPerBlock * (kWidth + n); }

// `count` groups of n columns one after another, from column `first` on. w [rows, k]; old_parts [rows, 3 k]: of each row's errors the high parts, the
// low parts and the high parts again; slopes [rows, count · n]: errors · H at these columns; hessian [k, k] and the sums of its squares on the diagonal
// totals [k / n]; old_codes [rows, k]; old_scales, old_biases [rows, k / n]. Out: codes, parts, scales, biases alike: what stands elsewhere is copied,
// for the launches that would put a group's in place cost more.
template <class S, int n>
__device__ void refine(float* shared, const float* w, const float* old_parts, const float* slopes, const float* hessian, const float* totals,
                       const unsigned char* old_codes, const S* old_scales, const S* old_biases, int first, int count, float top, int rows, int k,
                       unsigned char* codes, float* parts, S* scales, S* biases) {
  constexpr int m = n / kLanes;
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes, groups = k / n, width = count * n;
  float* square = shared;
  float* slope = square + n * n + own * kWidth;
  float* change = square + n * n + kRowsPerBlock * kWidth + own * n;
  const int turn = blockIdx.x * kRowsPerBlock + own;
  const long row = turn < rows ? turn : rows - 1;
  const long begin = static_cast<long>(blockIdx.x) * kRowsPerBlock, end = begin + kRowsPerBlock < rows ? begin + kRowsPerBlock : rows;
  for (long i = begin * 3 * k + threadIdx.x; i < end * 3 * k; i += blockDim.x) parts[i] = old_parts[i];
  for (long i = begin * k + threadIdx.x; i < end * k; i += blockDim.x) codes[i] = old_codes[i];
  for (long i = begin * groups + threadIdx.x; i < end * groups; i += blockDim.x) scales[i] = old_scales[i], biases[i] = old_biases[i];
  for (int c = lane; c < width; c += kLanes) slope[c] = slopes[row * width + c];
#pragma unroll 1
  for (int g = 0; g < count; ++g) {
    const int at = first + g * n, group = at / n;
    __syncthreads();  // the square before is used up, and what was copied is there
    for (int i = threadIdx.x; i < n * n; i += blockDim.x) square[i] = hessian[static_cast<long>(at + i / n) * k + at + i % n];
    __syncthreads();
    float weights[m], q[m], e[m], r[m], before[m];
#pragma unroll
    for (int i = 0; i < m; ++i) {
      const int c = column_of(i, lane);
      const float* error = old_parts + row * 3 * k + at + c;
      weights[i] = w[row * k + at + c];
      q[i] = static_cast<float>(old_codes[row * k + at + c]);
      e[i] = before[i] = __fadd_rn(error[0], error[k]);
      r[i] = slope[g * n + c];
    }
    float scale = static_cast<float>(old_scales[row * groups + group]), bias = static_cast<float>(old_biases[row * groups + group]);
    refit<S, n>(square, totals[group], lane, weights, q, e, r, scale, bias);
    recode<S, n>(square, lane, top, scale, bias, weights, q, e, r);
    refit<S, n>(square, totals[group], lane, weights, q, e, r, scale, bias);
#pragma unroll
    for (int i = 0; i < m; ++i) {
      const int c = column_of(i, lane);
      change[c] = __fsub_rn(e[i], before[i]);
      if (turn >= rows) continue;
      codes[row * k + at + c] = static_cast<unsigned char>(q[i]);
      float high, low;
      split(e[i], high, low);
      float* error = parts + row * 3 * k + at + c;
      error[0] = error[2 * k] = high;
      error[k] = low;
    }
    if (turn < rows && lane == 0) scales[row * groups + group] = static_cast<S>(scale), biases[row * groups + group] = static_cast<S>(bias);
    __syncwarp();
    // What the groups behind it find.
    for (int c = (g + 1) * n + 4 * lane; c < width; c += 4 * kLanes) {
      float sum[4] = {slope[c], slope[c + 1], slope[c + 2], slope[c + 3]};
#pragma unroll 4
      for (int j = 0; j < n; ++j) {
        const float4 h = *reinterpret_cast<const float4*>(hessian + static_cast<long>(at + j) * k + first + c);
        sum[0] += change[j] * h.x, sum[1] += change[j] * h.y, sum[2] += change[j] * h.z, sum[3] += change[j] * h.w;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) slope[c + i] = sum[i];
    }
    __syncwarp();
  }
}

}  // namespace lquant
