#pragma once

#include <mlx/array.h>

// Numbers rounded as a cache in a narrow format would have them (DeepSeek-V4.1's), with the gradient of what is not rounded (straight-through,
// arXiv 1308.3432). Blocks are of neighbours along the last axis; where they do not fill it, x is as it was. In f32, rounded to x's dtype at the end.
namespace lquant::model {

namespace mx = mlx::core;

/// e4m3 in blocks of 32 whose scales are powers of two.
mx::array through_fp8(const mx::array& x);

/// e2m1 in blocks of 32 whose scales are powers of two; or in blocks of 16 whose scales are e4m3.
mx::array through_fp4(const mx::array& x);
mx::array through_fp4_of_16(const mx::array& x);

}  // namespace lquant::model
