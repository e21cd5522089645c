#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/moe.h"
#include "kernels/primitive.h"

// The CPU forms of elementwise.h and moe.h, and the argument structs of their loops. Internal to this folder: the public functions check
// their arguments, then come here when serves() says so. Arguments and results are as there.
namespace lquant::kernels::cpu {

#ifdef LQUANT_ONEDNN
inline constexpr bool built = true;
#else
inline constexpr bool built = false;
#endif

/// True when the functions below can take an array of this dtype on the default device.
inline bool serves(mx::Dtype dtype) { return built && cpu_kernels() && (dtype == mx::float32 || dtype == mx::bfloat16); }

/// Elements below which a second thread costs more than it brings: 16 Ki take about 5 µs, as starting a team does.
inline constexpr std::int64_t kGrain = 1 << 14;

/// Rows of `width` elements that make one grain.
inline std::int64_t grain_rows(std::int64_t width) { return 1 + kGrain / (width > 0 ? width : 1); }

/// Sums over rows are made in blocks of this many rows, each summed in f32 and then added in the blocks' order: the result does
/// not depend on the number of threads, and the blocks' sums add 1/32 to the memory traffic.
inline constexpr std::int64_t kRowBlock = 32;

inline std::int64_t row_blocks(std::int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps, float weight_offset);
std::pair<mx::array, mx::array> residual_norm(const mx::array& x, const mx::array& weight, float eps, float weight_offset);
mx::array add_norm(const mx::array& residual, const mx::array& y, const mx::array& weight, float eps, float weight_offset);

mx::array layer_norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias, float eps,
                     float weight_offset);

/// A norm's parameter plus `offset`, rounded to its dtype (f32 or bf16), as f32.
std::vector<float> as_floats(const mx::array& parameter, float offset);
inline const float* data_or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }
/// Adds up sums [blocks, width] in the order of their blocks into `out` [width], f32 or bf16.
void add_blocks(const std::vector<float>& blocks, std::int64_t width, mx::array& out);

/// `direction` −1 rotates back, which is the gradient.
mx::array rope(const mx::array& x, const mx::array& inv_freq, int offset, float magnitude, bool interleaved,
               const std::optional<mx::array>& positions, int direction = 1);

mx::array gated(const mx::array& gate, const mx::array& up, Activation activation);
mx::array gated_fused(const mx::array& gate_up, Activation activation);
mx::array clamped_gated(const mx::array& gate, const mx::array& up, const ClampedGate& clamp);

mx::array activate(const mx::array& x, Activation activation);
/// xielu() with its two factors, all four f32 numbers; gradients to x, p and n.
mx::array xielu(const mx::array& x, const mx::array& p, const mx::array& n, const mx::array& beta, const mx::array& eps);

mx::array embedding(const mx::array& ids, const mx::array& table);
/// Rows of a table of u32, such as packed codes; ids are checked likewise. No gradient.
mx::array gather_words(const mx::array& ids, const mx::array& table);
/// x · factor.
mx::array times(const mx::array& x, float factor);

mx::array add(const mx::array& a, const mx::array& b);
mx::array add_squares(const mx::array& sum, const mx::array& x);
mx::array second_moment(const mx::array& x);

Routing sort_by_expert(const mx::array& experts, int num_experts);
mx::array gather_rows(const mx::array& x, const Routing& routing, int k);
mx::array combine_rows(const mx::array& y, const mx::array& weights, const Routing& routing, int k);

// What the loops are given. Pointers are to f32 or, when `bf16`, to bfloat16; nullptr means absent or not wanted.

struct NormForward {
  const void *x, *residual;
  const float* weight;  ///< offset already added
  void* out;
  std::int64_t rows, width;
  float eps;
  bool bf16;
};

struct NormBackward {
  const void *x, *cotangent, *stream_cotangent;  ///< the last is added to dx: the residual stream's own gradient
  const float* weight;
  void* dx;
  float* dweight;  ///< [row_blocks(rows), width]: sums of the blocks
  std::int64_t rows, width;
  float eps;
  bool bf16;
};

struct LayerNormForward {
  const void* x;
  const float *weight, *bias;  ///< the weight's offset already added
  void* out;
  std::int64_t rows, width;
  float eps;
  bool bf16;
};

struct LayerNormBackward {
  const void *x, *cotangent;
  const float* weight;
  void* dx;
  float *dweight, *dbias;  ///< [row_blocks(rows), width] each: sums of the blocks
  std::int64_t rows, width;
  float eps;
  bool bf16;
};

struct RopeArgs {
  const void* x;
  const float* inv_freq;
  const std::int32_t* positions;  ///< [tokens], or nullptr: offset + token % length
  void* out;
  std::int64_t tokens, length, heads, width, pairs;
  int offset;
  float magnitude, direction;
  bool interleaved, bf16;
};

/// Row r of gate, up, dgate and dup lies at r·stride; out and the cotangent are dense. With a cotangent the gradients are made, else out.
/// `total` elements in rows of `width`, the last of which may be shorter.
struct GatedArgs {
  const void *gate, *up, *cotangent;
  void *out, *dgate, *dup;
  std::int64_t total, width, stride;
  Activation activation;
  bool bf16;
  const ClampedGate* clamp = nullptr;  ///< instead of the activation
};

/// With a cotangent `out` is the gradient, else activation(x).
struct ActivateArgs {
  const void *x, *cotangent;
  void* out;
  std::int64_t count;
  Activation activation;
  bool bf16;
};

/// With a cotangent `out` is dx (or nullptr), and `sums` (or nullptr) the gradients to p and n, [blocks of kGrain elements, 2].
struct XieluArgs {
  const void *x, *cotangent;
  void* out;
  double* sums;
  std::int64_t count;
  float p, n, beta, eps;
  bool bf16;
};

/// sums[ids[i]] += rows[i], after zeroing the table's rows.
struct ScatterArgs {
  const std::int32_t* ids;
  const void* rows;
  float* sums;
  std::int64_t count, table_rows, width;
  bool bf16;
};

/// Rows of y in sorted order, of tokens · k; inverse[t·k + j] is the row of token t's choice j.
struct CombineArgs {
  const void* y;
  const std::int32_t* inverse;
  const float* weights;  ///< [tokens, k], or nullptr: all 1
  void* out;
  std::int64_t tokens, k, width;
  bool bf16;
};

struct CombineBackward {
  const void *y, *cotangent;
  const std::int32_t* inverse;
  const float* weights;
  void* dy;
  float* dweights;
  std::int64_t tokens, k, width;
  bool bf16;
};

}  // namespace lquant::kernels::cpu
