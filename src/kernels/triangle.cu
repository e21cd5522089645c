// Device code of cholesky.cpp: inverses of the small triangles on the diagonal of a large one, a warp for each.
namespace lquant {

constexpr int kTriangle = 32;

// upper: [k, k], of which triangle i stands at row and column 32 i; out [k / 32, 32, 32]. A lane makes a column.
__device__ void invert_triangles(const float* upper, int k, float* out) {
  __shared__ float r[kTriangle][kTriangle + 1], x[kTriangle][kTriangle + 1];
  const int lane = threadIdx.x;
  const float* from = upper + blockIdx.x * static_cast<long>(kTriangle) * (k + 1);
  for (int i = 0; i < kTriangle; ++i) r[i][lane] = from[static_cast<long>(i) * k + lane];
  __syncthreads();
  for (int i = kTriangle - 1; i >= 0; --i) {
    float sum = i == lane ? 1.0f : 0.0f;
    for (int j = i + 1; j <= lane; ++j) sum -= r[i][j] * x[j][lane];
    x[i][lane] = i <= lane ? sum / r[i][i] : 0.0f;
  }
  float* to = out + blockIdx.x * static_cast<long>(kTriangle * kTriangle);
  for (int i = 0; i < kTriangle; ++i) to[i * kTriangle + lane] = x[i][lane];
}

}  // namespace lquant
