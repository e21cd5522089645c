#pragma once

#include <cstdint>
#include <vector>

// Attention with the whole matrix of scores, in double precision, one row after the other.
namespace lquant::oracle {

struct AttentionSize {
  std::int64_t batch, queries, keys, heads, kv_heads, dim, value_dim;
};

struct AttentionRule {
  double scale = 1, softcap = 0;
  std::int64_t window = 0, offset = 0;
  bool causal = true;
  std::vector<std::int32_t> segments = {};  ///< [batch, keys] or empty
  std::int32_t branch = 1;                  ///< segments see also the next multiple of this at or below their own number
  std::int64_t chunk = 0;                   ///< positions, counted from the first of the run of equal segment numbers; 0: no chunks
  std::vector<double> sinks = {};           ///< [heads] or empty
};

/// A tensor and, element by element, how far a computation may be from it that takes products, sums and exponentials in f32 and rounds
/// its results to a dtype with unit roundoff `unit`. Derived in the .cpp.
struct Bounded {
  std::vector<double> values, bounds;
};

struct AttentionReference {
  Bounded out, dq, dk, dv, dsinks;
};

/// q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv], cotangent of out [B, T, H, Dv]. `inner` is the unit roundoff of what is made on the way,
/// where that is coarser than f32.
AttentionReference attention(const AttentionSize& size, const AttentionRule& rule, const std::vector<double>& q, const std::vector<double>& k,
                             const std::vector<double>& v, const std::vector<double>& cotangent, double unit, double inner = 0);

}  // namespace lquant::oracle
