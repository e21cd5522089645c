#pragma once

#include <vector>

#include "codec/feedback.h"

// The CUDA side of feedback.h, for when kernels::cuda_kernels() says so. Groups are of 32, 64 or 128 columns.
namespace lquant::codec::gpu {

mx::array round_with_feedback(const mx::array& w, const mx::array& unit_upper, const mx::array& scales, const mx::array& biases,
                              const std::vector<int>& group, const Format& format);
Coded refine(const mx::array& w, const mx::array& hessian, const Coded& start, const Format& format, int sweeps);

/// values_of: MLX's own kernel may fuse the product and the sum, and so round once where CPUs and this file's kernels round twice.
mx::array values_of(const Coded& coded, const Format& format);

/// a · b in f32 precision: MLX lets tensor cores cut the factors of f32 products to 11 bits, 2⁻¹¹ of every term. An outlier channel's terms are
/// thousands of times as large as the change of the sum that a code is judged by.
mx::array product(const mx::array& a, const mx::array& b);

}  // namespace lquant::codec::gpu
