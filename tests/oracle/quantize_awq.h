#pragma once

#include <vector>

#include "quantize/awq.h"

// AWQ's search with one scale a channel, as its definition reads: loops in double.
namespace lquant::oracle {

/// The rows that judge: every ⌊N/128⌋-th.
std::vector<int> judging_rows(int rows);

struct JudgedError {
  double error = 0;
  double rounding = 0;  ///< how far f32 products and quotients may be from it
};

/// Σ over the readers' judging rows of e · H · eᵀ, e = w − Q(w · s)/s. The readers are plain linears [N, K]. Q is codec's, asked with the very f32
/// numbers, so that no close call between two codes comes into it.
JudgedError judged_error(const model::Edge& edge, const std::vector<quantize::Reader>& readers, const std::vector<float>& scales, bool clip,
                         mlx::core::Dtype scale_dtype);

/// x̄^r, or with duo x̄^r / w̄^(1−r), divided by √(largest · smallest).
std::vector<double> awq_scales(const model::Edge& edge, const std::vector<quantize::Reader>& readers, double r, bool duo);

}  // namespace lquant::oracle
