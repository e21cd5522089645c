#pragma once

#include <mlx/array.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>

#include "checkpoint/safetensors.h"

namespace lquant::checkpoint {

/// The tensor's bytes as an evaluated array of info.dtype, row-major. MLX's CPU backend cannot wrap foreign memory (its buffers carry
/// their size in front), so the bytes are read straight into a buffer of its allocator: one copy, no other memory.
/// F64 is rounded to float32; F8_E4M3 and F8_E5M2 become bfloat16, which holds each of their values exactly; any
/// non-zero byte of a BOOL is true. Throws Error when the file is shorter than its header said.
mx::array read_tensor(const File& file, const TensorInfo& info);

/// Throws Error naming `file`, `name` and how many values are NaN or infinite when a floating-point array holds any; evaluates it.
/// Other dtypes pass.
void check_finite(const mx::array& value, const std::string& name, const std::filesystem::path& file);

enum class Fp8 { e4m3, e5m2 };
/// For each of the 256 codes of an 8-bit float (OCP OFP8, arXiv 2209.05433) the bits of the bfloat16 of the same value.
const std::array<std::uint16_t, 256>& bfloat16_of(Fp8 format);

}  // namespace lquant::checkpoint
