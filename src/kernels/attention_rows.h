#pragma once

#include <cstdint>

// The vector loops between the products of the CPU's attention, each over one block, in f32. Internal to this folder; built on
// x86-64 Linux only. Rows of scores start at multiples of 16 floats and may be read and written up to the next multiple of 16.
namespace lquant::kernels::blockwise {

class Visibility;

/// scores [heads·queries, keys] → exp(score − running maximum) where visible, 0 elsewhere; row j·queries + i is query `query` + i of
/// the j-th head. Running per row, updated as FlashAttention-2 does (arXiv 2307.08691): `maximum`, `sum`, and `value`, whose first
/// `value_dim` columns are multiplied by exp(old maximum − new maximum).
struct SoftmaxBlock {
  const Visibility* visibility;
  const std::int32_t* segments;  ///< the text's numbers, as Visibility::segments gives them
  float *scores, *maximum, *sum, *value;
  std::int64_t heads, query, queries, key, keys, row, value_row, value_dim;
  float softcap;
};
void softmax_block(const SoftmaxBlock& block);

/// Transposed q·k and dP [keys, heads·columns] → P and the gradient of q·k, P·(dP − delta)·softcap'·scale; 0 where not visible. Column j·columns + i
/// is query `query` + i of the j-th head, for i < queries; columns is a multiple of 16, those beyond `queries` become 0.
struct GradientBlock {
  const Visibility* visibility;
  const std::int32_t* segments;
  float *scores, *products;
  const float *log_sum, *delta;  ///< [heads·columns]
  std::int64_t heads, query, queries, columns, key, keys, row;
  float scale, softcap;
};
void gradient_block(const GradientBlock& block);

/// to = scale·from, n values; `bf16` says what `from` holds.
void widen(const void* from, bool bf16, float scale, std::int64_t n, float* to);
/// to = from / divisor, n values; `bf16` says what `to` holds.
void narrow(const float* from, float divisor, std::int64_t n, void* to, bool bf16);
/// Copies n values of x to f32 and returns Σ x·y.
float widen_dot(const void* x, const void* y, bool bf16, std::int64_t n, float* to);
/// to += from, n values.
void accumulate(const float* from, std::int64_t n, float* to);

/// scores[r, s] = Σ_d q[r, d]·k[s, d]: for few rows r, where a matrix product's preparations cost more than it. Each row of k is
/// read once for every four rows of q.
struct ThinScores {
  const float* q;  ///< [rows, dim], dense
  const void* k;   ///< [keys, dim], rows `k_row` apart
  bool bf16;
  std::int64_t rows, keys, dim, k_row, row;
  float* scores;  ///< [rows, keys], rows `row` apart
};
void thin_scores(const ThinScores& product);

/// value[r, d] += Σ_s p[r, s]·v[s, d], likewise.
struct ThinValues {
  const float* p;  ///< [rows, keys], rows `row` apart
  const void* v;   ///< [keys, dim], rows `v_row` apart
  bool bf16;
  std::int64_t rows, keys, dim, v_row, row, value_row;
  float* value;  ///< [rows, dim], rows `value_row` apart
};
void thin_values(const ThinValues& product);

}  // namespace lquant::kernels::blockwise
