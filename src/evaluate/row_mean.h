#pragma once

#include <cstdint>
#include <vector>

// Means over tokens whose errors are taken over rows: tokens of one row hang together, and an error that took each for a draw of its own would
// be too small.
namespace lquant::evaluate {

struct Mean {
  double value = 0;
  double error = 0;  ///< standard error; NaN where it is not known, as it is not from fewer than two values (or rows)
};

/// A figure summed over the scored tokens of one row, and how many they are.
struct RowSum {
  double sum = 0;
  std::int64_t tokens = 0;
};

/// The mean over tokens m = Σ_r s_r / N with N = Σ_r n_r, and its standard error by the ratio estimator over the R rows that have tokens:
///     error² = R / (R − 1) · Σ_r (s_r − m·n_r)² / N²
/// With rows of equal length it is the usual error of the mean of the rows' means. 0 ± NaN without tokens.
Mean token_mean(const std::vector<RowSum>& rows);

/// How much larger the mean over tokens is in `rows` than in `others`, which are the same rows scored by another model: token_mean of the
/// differences d_r = s_r − s'_r, whose error is small where both models find the same rows hard.
/// Throws std::invalid_argument when the rows or their tokens are not as many.
Mean paired_difference(const std::vector<RowSum>& rows, const std::vector<RowSum>& others);

}  // namespace lquant::evaluate
