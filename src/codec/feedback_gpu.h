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

}  // namespace lquant::codec::gpu
