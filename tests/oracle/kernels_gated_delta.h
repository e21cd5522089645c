#pragma once

#include <cstdint>
#include <vector>

// The gated delta rule token by token, in double precision.
namespace lquant::oracle {

struct DeltaSize {
  std::int64_t batch, tokens, key_heads, value_heads, key_dim, value_dim;
};

struct DeltaInputs {
  std::vector<double> q, k;                 ///< [B, T, Hk, Dk]
  std::vector<double> v;                    ///< [B, T, Hv, Dv]
  std::vector<double> log_decay, beta;      ///< [B, T, Hv]; log_decay may be [B, T, Hv, Dk]
  std::vector<double> state = {};           ///< [B, Hv, Dv, Dk] or empty: 0
  std::vector<std::int32_t> segments = {};  ///< [B, T] or empty
};

struct DeltaResult {
  std::vector<double> y;      ///< [B, T, Hv, Dv]
  std::vector<double> state;  ///< [B, Hv, Dv, Dk]
  double largest = 0;         ///< the largest length of a row of any state, of any v, and of a y
};

DeltaResult gated_delta(const DeltaSize& size, const DeltaInputs& in);

}  // namespace lquant::oracle
