#pragma once

#include "codec/format.h"
#include "kernels/dequantize.h"

// Plain quantization: what mx.quantize and mx.dequantize compute, bit for bit on the same device, but on all cores of a CPU.
namespace lquant::codec {

using kernels::pack_codes;
using kernels::unpack_codes;

/// Round-to-nearest on the range of each group, by MLX's rule: an affine group's scale is (max − min) / (2^bits − 1), signed and
/// stretched so that the edge of larger magnitude and zero are both exact. w is f32, bf16 or f16 [..., N, K]; scales and biases
/// have its dtype. Lazy. A NaN becomes code 0 and takes no part in the range of an affine group; an infinite weight makes its group
/// NaN. In the mx and nv modes a group with either is unspecified, as it is in MLX.
/// Throws Error for an empty w, K not a multiple of the group size, a dtype that is not one of the three, or an impossible format.
Packed quantize(const mx::array& w, const Format& format);

/// The numbers that `packed` stands for, [..., N, K] of `dtype`, as mx.dequantize makes them. Differentiable for scales and biases of
/// affine weights (kernels::dequantize_affine).
mx::array dequantize(const Packed& packed, const Format& format, mx::Dtype dtype);

/// Throws Error, naming the shape and the mend, unless w can be quantized to `format`.
void check_weight(const mx::array& w, const Format& format);

}  // namespace lquant::codec
