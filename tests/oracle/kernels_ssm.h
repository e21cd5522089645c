#pragma once

#include <vector>

// Recurrences of state-space models in double precision, token by token.
namespace lquant::oracle {

struct StateSpaceSize {
  int batch = 1, tokens = 1, heads = 1, width = 1, groups = 1, state = 1;
};

struct StateSpaceInput {
  std::vector<double> x, dt, a, b, c;  ///< [B, T, H, P], [B, T, H], [H], [B, T, G, N] twice
  std::vector<int> segments;           ///< [B, T], or empty
  std::vector<double> first;           ///< [B, H, P, N], or empty
};

/// y [B, T, H, P] and the last state [B, H, P, N]: S ← exp(a Δ) S + Δ x bᵀ, y = S c; S is 0 where a segment begins.
struct StateSpaceOutput {
  std::vector<double> y, state;
};
StateSpaceOutput state_space(const StateSpaceSize& size, const StateSpaceInput& in);

struct SelectiveScanInput {
  int batch = 1, tokens = 1, channels = 1, size = 1;
  std::vector<double> x, dt, a, b, c;  ///< [B, T, C] twice, [C, N], [B, T, N] twice
  std::vector<int> segments;           ///< [B, T], or empty
  std::vector<double> first;           ///< [B, C, N], or empty
};

/// y [B, T, C] and the last state [B, C, N]: h ← exp(a Δ) h + Δ x b, y = Σ h c; h is 0 where a segment begins.
StateSpaceOutput selective_scan(const SelectiveScanInput& in);

/// h_t = a_t h_{t−1} + u_t; a and u [B, T, M], first [B, M] or empty.
std::vector<double> linear_scan(int batch, int tokens, const std::vector<double>& a, const std::vector<double>& u, const std::vector<double>& first);

}  // namespace lquant::oracle
