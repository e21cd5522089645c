// Device code of delta_chunks.cpp, a block for each chunk of up to 64 tokens: the decays between its tokens, with their gradient, and the inverse of a
// unit lower triangle.
namespace lquant {

constexpr int kLongest = 64;

// logs [N, C]; between [N, C, C], front [N, C]. A thread goes down column j, the last one down the front's.
__device__ void decays(const float* logs, int length, float* between, float* front) {
  __shared__ float own[kLongest];
  const int j = threadIdx.x;
  const long chunk = blockIdx.x;
  if (j < length) own[j] = logs[chunk * length + j];
  __syncthreads();
  if (j > length) return;
  float sum = 0;
  for (int i = 0; i < length; ++i) {
    if (j == length) {
      sum += own[i];
      front[chunk * length + i] = expf(sum);
    } else {
      if (i > j) sum += own[i];
      between[(chunk * length + i) * length + j] = i < j ? 0.0f : expf(sum);
    }
  }
}

// dlogs [N, C]: token t stands in all products from j < t to i ≥ t. Each column's sums from below, then what all columns say of a token.
__device__ void decay_gradients(const float* between, const float* front, const float* dbetween, const float* dfront, int length, float* dlogs) {
  __shared__ float sums[kLongest][kLongest + 1];
  const int j = threadIdx.x;
  const long chunk = blockIdx.x;
  if (j <= length) {
    float sum = 0;
    for (int i = length - 1; i >= 0; --i) {
      if (j == length) {
        sum += front[chunk * length + i] * dfront[chunk * length + i];
      } else {
        const long at = (chunk * length + i) * length + j;
        sum += i > j ? between[at] * dbetween[at] : 0.0f;
      }
      sums[i][j] = sum;
    }
  }
  __syncthreads();
  if (j >= length) return;
  float sum = sums[j][length];
  for (int column = 0; column < j; ++column) sum += sums[j][column];
  dlogs[chunk * length + j] = sum;
}

// x [N, C, C]: the inverse of I + a, of whose rows only what stands before the diagonal is read. A thread substitutes down column j.
__device__ void unit_inverse(const float* a, int length, float* x) {
  __shared__ float of_a[kLongest][kLongest], of_x[kLongest][kLongest + 1];
  const int j = threadIdx.x;
  const float* from = a + blockIdx.x * static_cast<long>(length) * length;
  float* to = x + blockIdx.x * static_cast<long>(length) * length;
  for (int i = threadIdx.x; i < length * length; i += blockDim.x) of_a[i / length][i % length] = from[i];
  __syncthreads();
  if (j >= length) return;
  for (int i = 0; i < length; ++i) {
    float sum = i == j ? 1.0f : 0.0f;
    for (int k = 0; k < i; ++k) sum -= of_a[i][k] * of_x[k][j];
    of_x[i][j] = sum;
    to[i * length + j] = sum;
  }
}

}  // namespace lquant
