#pragma once

#include "codec/format.h"

// The CPU side of quantize.h, built where the CPU kernels are. Row-contiguous arrays; threaded over groups.
namespace lquant::codec::cpu {

/// outputs: codes, scales and, for affine, biases.
void quantize(const mx::array& w, const Format& format, std::vector<mx::array>& outputs);

/// Of the modes without biases.
void dequantize_float(const mx::array& codes, const mx::array& scales, const Format& format, mx::array& out);

}  // namespace lquant::codec::cpu
