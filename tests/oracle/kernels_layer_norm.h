#pragma once

#include <vector>

// Layer norm in double precision, one row after the other.
namespace lquant::oracle {

/// (x − mean) / sqrt(variance + eps) · weight + bias over rows of weight.size().
std::vector<double> layer_norm(const std::vector<double>& x, const std::vector<double>& weight, const std::vector<double>& bias, double eps);

/// How large the terms are whose sums and roundings bound the errors of an f32 computation. With n the normed row, r = 1/√(variance + eps) and
/// m = r·mean|x|, since the mean errs in proportion to mean|x|, which a row far from 0 has large:
///   normed   |n| + m;
///   dx       r·(|h| + mean|h| + (|n| + m)·mean(|h|·(|n| + m))), h = cotangent·weight;
///   dweight  Σ over rows of |cotangent|·(|n| + m);   dbias  Σ over rows of |cotangent|.
struct LayerNormTerms {
  std::vector<double> normed, dx, dweight, dbias;
};
LayerNormTerms layer_norm_terms(const std::vector<double>& x, const std::vector<double>& weight, const std::vector<double>& cotangent, double eps);

}  // namespace lquant::oracle
