#pragma once

#include "codec/range_search.h"

// The CUDA side of range_search.h, for affine formats and when kernels::cuda_kernels() says so; arguments are checked. Results stay on the device.
namespace lquant::codec::gpu {

RangeSearchResult range_search(const mx::array& w, const Format& format, const std::optional<mx::array>& importance, mx::Dtype scale_dtype);
mx::array requantize_codes(const mx::array& w, const mx::array& scales, const mx::array& biases, const Format& format);

/// measure_error for every format, by MLX's ops.
QuantizationError measure_error(const mx::array& w, const Packed& packed, const Format& format, const std::optional<mx::array>& importance);
double weighted_error(const mx::array& w, const Packed& packed, const Format& format, const std::optional<mx::array>& importance);

}  // namespace lquant::codec::gpu
