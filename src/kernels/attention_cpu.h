#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_blocks.h"

// The two passes of the CPU's attention, on evaluated, row-contiguous arrays. Internal to this folder; built on x86-64 Linux only.
namespace lquant::kernels::blockwise {

/// What the caller asked for and, for one pass, where its tensors are.
struct Problem {
  Shape shape;
  AttentionArgs args;
  bool bf16;
  const char *q, *k, *v;
  const std::int32_t* segments;  ///< nullptr without segments
  const float* sinks;            ///< [heads], or nullptr

  Problem(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array* segments, const mx::array* sinks, const AttentionArgs& args);

  std::int64_t item() const { return bf16 ? 2 : 4; }
  mx::Dtype dtype() const { return bf16 ? mx::bfloat16 : mx::float32; }
  /// Byte offset of token t, head h in a tensor [B, tokens, heads, width].
  std::int64_t at(std::int64_t b, std::int64_t tokens, std::int64_t t, std::int64_t heads, std::int64_t h, std::int64_t width) const {
    return (((b * tokens + t) * heads + h) * width) * item();
  }
  const char* query(std::int64_t b, std::int64_t t, std::int64_t h) const { return q + at(b, shape.queries, t, shape.heads, h, shape.dim); }
  const char* key(std::int64_t b, std::int64_t s, std::int64_t g) const { return k + at(b, shape.keys, s, shape.kv_heads, g, shape.dim); }
  const char* value(std::int64_t b, std::int64_t s, std::int64_t g) const { return v + at(b, shape.keys, s, shape.kv_heads, g, shape.value_dim); }
  /// Where query t of head h stands in a tensor [B, H, T].
  std::int64_t row_of(std::int64_t b, std::int64_t h, std::int64_t t) const { return (b * shape.heads + h) * shape.queries + t; }
};

/// Queries in a block: heads that share keys are stacked, and this many queries of each make about `kRows` rows.
std::int64_t query_block(const Shape& shape);

/// out [B, T, H, Dv] of the inputs' dtype and log_sum f32 [B, H, T], the logarithm of each row's softmax denominator.
void forward(const Problem& problem, char* out, float* log_sum);

/// dq, dk and dv, shaped and typed as q, k and v, from what forward() returned and the cotangent of `out`.
void backward(const Problem& problem, const char* out, const float* log_sum, const char* cotangent, char* dq, char* dk, char* dv);

/// The gradient of a problem's sinks, f32 [H], likewise.
void sink_gradients(const Problem& problem, const char* out, const float* log_sum, const char* cotangent, float* dsinks);

}  // namespace lquant::kernels::blockwise
