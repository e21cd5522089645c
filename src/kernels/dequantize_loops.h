#pragma once

#include <mlx/array.h>

// The CPU side of dequantize.h, built where the CPU kernels are. Arrays are row-contiguous; as every group fills whole words of
// codes, rows and leading dimensions do not matter and everything is one run of groups. Threaded.
namespace lquant::kernels::cpu {

namespace mx = mlx::core;

void dequantize_affine(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size, mx::array& out);
void dequantize_affine_gradient(const mx::array& codes, const mx::array& gradient, int bits, int group_size, mx::array& d_scales,
                                mx::array& d_biases);
void unpack_codes(const mx::array& codes, int bits, mx::array& out);
void pack_codes(const mx::array& codes, int bits, mx::array& out);

}  // namespace lquant::kernels::cpu
