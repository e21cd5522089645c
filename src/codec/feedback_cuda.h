#pragma once

// The CUDA text behind feedback_gpu.cpp, compiled by MLX when first called. It does what feedback_cpu.cpp does, row by row: same rounding of values,
// same tests for taking a change.
//
// Eight lanes share a row, so that what a row's column costs once (a division, rounding) is paid once for the four rows of a warp, while each lane's
// part of a row stays in registers. Lane l of 8 holds columns 32·t + 4·l + c (c < 4) in x[4·t + c]: its four neighbours are one 16-byte load from the
// square matrix in shared memory. Loops over t and c are unrolled since registers have no index; only the loop over lanes runs.
//
// Every lane of a warp takes part in every shuffle: rows beyond the last work on the last row again and write nothing, and rows that change nothing
// add zeros.
namespace lquant::codec::gpu {

inline constexpr int kLanesPerRow = 8;

/// What both kernels use. n is the number of columns, a multiple of 32; S the dtype of scales and biases.
inline constexpr const char* kCudaCommon = R"cuda(
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

}  // namespace lquant
)cuda";

/// Inputs: w, fed [N, n] (what earlier columns' errors add to w), inside [n, n], scales, biases [N, groups], group [n], top [1].
/// Outputs: codes u8, the errors' parts high and low f32 [N, n].
inline constexpr const char* kCudaFeedback = R"cuda(
  constexpr int m = n / lquant::kLanes;
  extern __shared__ float4 shared[];
  float* square = reinterpret_cast<float*>(shared);
  for (int i = threadIdx.x; i < n * n; i += blockDim.x) square[i] = inside[i];
  __syncthreads();
  const int lane = threadIdx.x % lquant::kLanes, rows = w_shape[0], groups = scales_shape[1];
  const int turn = (blockIdx.x * blockDim.x + threadIdx.x) / lquant::kLanes;
  const long long row = turn < rows ? turn : rows - 1;
  float weights[m], aim[m], q[m], e[m];
#pragma unroll
  for (int i = 0; i < m; ++i) {
    const long long at = row * n + lquant::column_of(i, lane);
    weights[i] = w[at];
    aim[i] = __fadd_rn(weights[i], fed[at]);
  }
  lquant::round_columns<S, n, 0>(square, scales + row * groups, biases + row * groups, group, top[0], lane, weights, aim, q, e);
  if (turn >= rows) return;
#pragma unroll
  for (int i = 0; i < m; ++i) {
    const long long at = row * n + lquant::column_of(i, lane);
    codes[at] = static_cast<unsigned char>(q[i]);
    lquant::split(e[i], high[at], low[at]);
  }
)cuda";

/// One group of n columns, from `first` [1] on. Inputs: w [N, n], old_high, old_low [N, K] (the parts of all errors), slopes [N, n] (all errors · H
/// at the group's columns), own [n, n] (the group's part of H), total [1] (its sum), old_codes [N, n], old_scales, old_biases [N, 1], first, top [1].
/// Outputs: codes, high, low, scales, biases alike. The errors are copied whole: the launches that would put a group's in place cost more.
inline constexpr const char* kCudaRefine = R"cuda(
  constexpr int m = n / lquant::kLanes;
  extern __shared__ float4 shared[];
  float* square = reinterpret_cast<float*>(shared);
  for (int i = threadIdx.x; i < n * n; i += blockDim.x) square[i] = own[i];
  const int lane = threadIdx.x % lquant::kLanes, rows = w_shape[0];
  const int turn = (blockIdx.x * blockDim.x + threadIdx.x) / lquant::kLanes;
  const long long row = turn < rows ? turn : rows - 1;
  const long long k = old_high_shape[1], per_block = blockDim.x / lquant::kLanes * k, begin = blockIdx.x * per_block;
  const long long end = begin + per_block < rows * k ? begin + per_block : rows * k;
  for (long long i = begin + threadIdx.x; i < end; i += blockDim.x) {
    high[i] = old_high[i];
    low[i] = old_low[i];
  }
  __syncthreads();  // for the matrix, and so that the group's new errors come after the copy of the old
  float weights[m], q[m], e[m], r[m];
#pragma unroll
  for (int i = 0; i < m; ++i) {
    const long long at = row * n + lquant::column_of(i, lane);
    weights[i] = w[at];
    q[i] = static_cast<float>(old_codes[at]);
    r[i] = slopes[at];
    const long long in_row = row * k + first[0] + lquant::column_of(i, lane);
    e[i] = __fadd_rn(old_high[in_row], old_low[in_row]);
  }
  float scale = static_cast<float>(old_scales[row]), bias = static_cast<float>(old_biases[row]);
  lquant::refit<S, n>(square, total[0], lane, weights, q, e, r, scale, bias);
  lquant::recode<S, n>(square, lane, top[0], scale, bias, weights, q, e, r);
  lquant::refit<S, n>(square, total[0], lane, weights, q, e, r, scale, bias);
  if (turn >= rows) return;
#pragma unroll
  for (int i = 0; i < m; ++i) {
    const long long at = row * n + lquant::column_of(i, lane);
    codes[at] = static_cast<unsigned char>(q[i]);
    const long long in_row = row * k + first[0] + lquant::column_of(i, lane);
    lquant::split(e[i], high[in_row], low[in_row]);
  }
  if (lane == 0) scales[row] = static_cast<S>(scale), biases[row] = static_cast<S>(bias);
)cuda";

}  // namespace lquant::codec::gpu
