#pragma once

#include <vector>

// Root-mean-square norm in double precision, one row after the other.
namespace lquant::oracle {

/// x [rows, weight.size()] / sqrt(mean(x²) + eps) · weight, row by row.
std::vector<double> rms_norm(const std::vector<double>& x, const std::vector<double>& weight, double eps);

/// How large the terms of the gradient to x are, whose sum and roundings bound its error: r·|h| + |x|·r³·mean|h·x| with
/// h = cotangent·weight.
std::vector<double> rms_norm_gradient_terms(const std::vector<double>& x, const std::vector<double>& weight, const std::vector<double>& cotangent,
                                            double eps);

/// Likewise of the gradient to the weight: Σ over rows of |cotangent · x · r|.
std::vector<double> rms_norm_weight_terms(const std::vector<double>& x, const std::vector<double>& cotangent, std::size_t width, double eps);

}  // namespace lquant::oracle
