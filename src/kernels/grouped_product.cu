// Device code of grouped_product.cpp: products of rows sorted by expert with each expert's matrix, and the gradients of those matrices, which are
// products over each expert's rows. A block makes 128 × 128 numbers of one expert; 32 of the inner dimension at a time come to shared memory while the
// tensor cores work on the 32 before. Chunks of eight elements are placed so that the eight that a warp reads at once lie in different banks.
namespace lquant {

constexpr int kTile = 128;  // rows and columns of a block's result
constexpr int kDepth = 32;  // of the inner dimension at a time
constexpr int kStages = 4;  // of them in shared memory
constexpr int kWarps = 8;   // two below one another, four side by side: each 64 × 32
constexpr int kChunk = 8;   // elements of 16 bytes
constexpr int kTileChunks = kTile * kDepth / kChunk;

// An operand: `count` vectors of `depth` elements. By vectors, element d of vector v is at [v · stride + d]; else at [d · stride + v].
template <class T>
struct Operand {
  const T* from;
  long stride;
  int first, count;  // the tile's first vector, all vectors
  int depth;
};

// Where chunk c of line r stands: a line is a vector's 32 elements, or the tile's 128 vectors at one depth.
template <bool by_vector>
__device__ int place(int r, int c) {
  if constexpr (by_vector) return r * (kDepth / kChunk) + (c ^ ((r >> 1) & 3));
  return r * (kTile / kChunk) + (c ^ (r & 7));
}

// Begins to load the 128 vectors at depths `at` … `at` + 31; what lies outside is 0.
template <bool by_vector, class T>
__device__ void load_tile(uint4* to, const Operand<T>& x, int at) {
  constexpr int line = (by_vector ? kDepth : kTile) / kChunk;
#pragma unroll
  for (int i = 0; i < kTileChunks / (32 * kWarps); ++i) {
    const int chunk = i * 32 * kWarps + threadIdx.x, r = chunk / line, c = chunk % line;
    const int vector = x.first + (by_vector ? r : c * kChunk), depth = at + (by_vector ? c * kChunk : r);
    const bool inside = vector < x.count && depth < x.depth;
    const T* from = x.from + (by_vector ? vector * x.stride + depth : depth * x.stride + vector);
    copy_16_bytes(to + place<by_vector>(r, c), inside ? from : x.from, inside);
  }
}

// 16 vectors from `vector` on at 16 depths from `depth` on, as multiply_add takes them: quarters by vectors first, or by depths.
template <bool by_vector, bool vectors_first>
__device__ void load_fragment(unsigned int (&to)[4], const uint4* tile, int vector, int depth) {
  const int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
  const int v = vectors_first ? low : high, d = vectors_first ? high : low;
  if constexpr (by_vector)
    load_matrices<false>(to, tile + place<true>(vector + v * 8 + lane % 8, depth / kChunk + d));
  else
    load_matrices<true>(to, tile + place<false>(depth + d * 8 + lane % 8, vector / kChunk + v));
}

template <class T>
__device__ void store_pair(T* to, float first, float second) {
  Several<T, 2> pair;
  pair.at[0] = static_cast<T>(first);
  pair.at[1] = static_cast<T>(second);
  store(pair, to, 0);
}

// y [rows, columns], stride `columns`: the tile of Σ_d a_d b_d, and a bias for each column if there is one.
template <bool a_by_vector, bool b_by_vector, class T>
__device__ void tile_product(uint4* shared, const Operand<T>& a, const Operand<T>& b, const T* bias, T* y, long columns) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp / 4 * 64, column = warp % 4 * 32;
  const auto tile_of_a = [&](int stage) { return shared + stage % kStages * 2 * kTileChunks; };
  const int steps = (a.depth + kDepth - 1) / kDepth;
  const auto load_stage = [&](int step) {
    if (step < steps) {
      load_tile<a_by_vector>(tile_of_a(step), a, step * kDepth);
      load_tile<b_by_vector>(tile_of_a(step) + kTileChunks, b, step * kDepth);
    }
    end_batch();  // an empty one too, so that their number tells the stage
  };
  float sums[4][4][4] = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load_stage(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_all_but<kStages - 2>();
    __syncthreads();  // all have this stage, and all have read the one that is loaded next
    load_stage(step + kStages - 1);
    const uint4 *of_a = tile_of_a(step), *of_b = of_a + kTileChunks;
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 16) {
      unsigned int left[4][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_fragment<a_by_vector, true>(left[i], of_a, row + 16 * i, depth);
#pragma unroll
      for (int j = 0; j < 2; ++j) load_fragment<b_by_vector, false>(right[j], of_b, column + 16 * j, depth);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1], T());
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int at = b.first + column + 8 * j + lane % 4 * 2;
    if (at >= b.count) continue;
    const float b0 = bias ? static_cast<float>(bias[at]) : 0.0f, b1 = bias ? static_cast<float>(bias[at + 1]) : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = a.first + row + 16 * i + 8 * half + lane / 4;
        if (r < a.count) store_pair(y + r * columns + at, sums[i][j][2 * half] + b0, sums[i][j][2 * half + 1] + b1);
      }
  }
}

// The expert of tile `tile` of rows, when each expert's rows are cut into tiles of 128, and the tile's first row; expert −1 behind the last.
// Every warp finds them for itself.
__device__ int2 expert_of_tile(const int* offsets, int experts, int tile) {
  const int lane = threadIdx.x % 32, share = (experts + 31) / 32, begin = min(lane * share, experts), end = min(begin + share, experts);
  const auto tiles_of = [&](int e) { return (offsets[e + 1] - offsets[e] + kTile - 1) / kTile; };
  int own = 0;
  for (int e = begin; e < end; ++e) own += tiles_of(e);
  int before = 0;  // tiles of the lanes before this one
  for (int other = 0; other < 32; ++other) {
    const int tiles = __shfl_sync(0xffffffffu, own, other, 32);
    if (other < lane) before += tiles;
  }
  int expert = -1, row = 0;
  for (int e = begin; e < end; ++e) {
    const int tiles = tiles_of(e);
    if (tile >= before && tile < before + tiles) expert = e, row = offsets[e] + (tile - before) * kTile;
    before += tiles;
  }
  for (int other = 16; other > 0; other /= 2) {
    expert = max(expert, __shfl_xor_sync(0xffffffffu, expert, other));
    row = max(row, __shfl_xor_sync(0xffffffffu, row, other));
  }
  return {expert, row};
}

// Rows [offsets[e], offsets[e + 1]) of y [R, n] from those of x [R, k] and w [E, n, k], or [E, k, n] if not `by_vector`. Block: tile of rows first.
template <class T, bool by_vector>
__device__ void rows_by_experts(uint4* shared, const T* x, const T* w, const T* bias, const int* offsets, int experts, int row_tiles, int k, int n, T* y) {
  const int2 at = expert_of_tile(offsets, experts, blockIdx.x % row_tiles);
  const int expert = at.x;
  if (expert < 0) return;
  const Operand<T> rows{x, k, at.y, offsets[expert + 1], k};
  const Operand<T> matrix{w + static_cast<long>(expert) * n * k, by_vector ? k : n, static_cast<int>(blockIdx.x / row_tiles) * kTile, n, k};
  tile_product<true, by_vector>(shared, rows, matrix, bias ? bias + static_cast<long>(expert) * n : nullptr, y, n);
}

// dw [E, n, k]: Σ over each expert's rows of dy [R, n] and x [R, k].
template <class T>
__device__ void gradients_by_experts(uint4* shared, const T* dy, const T* x, const int* offsets, int k, int n, T* dw) {
  const int across = (k + kTile - 1) / kTile, down = (n + kTile - 1) / kTile, expert = blockIdx.x / (across * down), tile = blockIdx.x % (across * down);
  const int first = offsets[expert], rows = offsets[expert + 1] - first;
  const Operand<T> left{dy + static_cast<long>(first) * n, n, tile / across * kTile, n, rows};
  const Operand<T> right{x + static_cast<long>(first) * k, k, tile % across * kTile, k, rows};
  tile_product<false, false>(shared, left, right, static_cast<const T*>(nullptr), dw + static_cast<long>(expert) * n * k, k);
}

}  // namespace lquant
