#pragma once

#include <vector>

// RWKV-7's recurrence in double precision, token by token.
namespace lquant::oracle {

struct WkvInput {
  int batch = 1, tokens = 1, heads = 1, width = 1;
  std::vector<double> r, w, k, v, a, b;  ///< [B, T, H, D]
  std::vector<int> segments;             ///< [B, T], or empty
  std::vector<double> first;             ///< [B, H, D, D], or empty
};

/// y [B, T, H, D] and the last state [B, H, D, D]: S ← S (diag(w) + a bᵀ) + v kᵀ, y = S r; S is 0 where a segment begins.
struct WkvOutput {
  std::vector<double> y, state;
};
WkvOutput wkv(const WkvInput& in);

}  // namespace lquant::oracle
