#pragma once

#include <mlx/array.h>

#include <optional>
#include <string>

namespace lquant::codec {

namespace mx = mlx::core;

/// MLX's number formats (mlx.core.quantize). affine: w = scale·q + bias with q in 0 … 2^bits − 1; the others are
/// the OCP microscaling formats and NVIDIA's FP4, with a scale and no bias.
enum class Mode { affine, mxfp4, mxfp8, nvfp4 };

struct Format {
  Mode mode = Mode::affine;
  int bits = 4;
  int group_size = 64;
  bool operator==(const Format&) const = default;
};

/// "affine", "mxfp4", "mxfp8", "nvfp4". parse_mode throws Error for anything else, naming the four.
std::string to_string(Mode mode);
Mode parse_mode(const std::string& name);

/// The group size and bits that a mode implies (mxfp4: 32, 4; mxfp8: 32, 8; nvfp4: 16, 4; affine: as asked, 64 and 4 by default).
Format default_format(Mode mode);

/// Throws Error naming what is wrong (bits 7, group 48, mxfp4 with group 64, …) and what is possible.
void check(const Format& format);

/// Bits that one weight costs with its share of scale and bias, for scales of `scale_bytes` (2 for bf16).
double bits_per_weight(const Format& format, int scale_bytes = 2);

/// A quantized matrix as MLX stores it: codes u32 [..., N, K·bits/32], scales [..., N, K/group] (u8 for the mx and nv modes),
/// biases like scales for affine alone.
struct Packed {
  mx::array codes;
  mx::array scales;
  std::optional<mx::array> biases;
};

}  // namespace lquant::codec
