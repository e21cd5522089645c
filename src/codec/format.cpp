// What each of MLX's modes allows, in one place; everything else asks here.
#include "codec/format.h"

#include <array>

#include "base/error.h"
#include "base/shown.h"

namespace lquant::codec {
namespace {

struct ModeRow {
  Mode mode;
  const char* name;
  int bits;
  int group_size;
};

/// Names and defaults as mlx.core.quantize has them.
constexpr std::array<ModeRow, 4> kModes{
    {{Mode::affine, "affine", 4, 64}, {Mode::mxfp4, "mxfp4", 4, 32}, {Mode::mxfp8, "mxfp8", 8, 32}, {Mode::nvfp4, "nvfp4", 4, 16}}};

const ModeRow& row(Mode mode) { return kModes[static_cast<std::size_t>(mode)]; }

}  // namespace

std::string to_string(Mode mode) { return row(mode).name; }

Mode parse_mode(const std::string& name) {
  for (const auto& r : kModes) {
    if (name == r.name) return r.mode;
  }
  fail("codec", "there is no quantization mode \"{}\"; choose affine, mxfp4, mxfp8 or nvfp4", shown(name));
}

Format default_format(Mode mode) { return {mode, row(mode).bits, row(mode).group_size}; }

void check(const Format& format) {
  if (format.mode != Mode::affine) {
    const auto only = default_format(format.mode);
    if (!(format == only)) {
      fail("codec", "mode {} exists with {} bits and groups of {} only, not with {} bits and groups of {}; leave both out or choose mode affine",
           to_string(format.mode), only.bits, only.group_size, format.bits, format.group_size);
    }
    return;
  }
  if (format.bits < 2 || format.bits > 8 || format.bits == 7) {
    fail("codec", "affine weights of {} bits do not exist; choose 2, 3, 4, 5, 6 or 8", format.bits);
  }
  if (format.group_size != 32 && format.group_size != 64 && format.group_size != 128) {
    fail("codec", "affine groups of {} do not exist; choose 32, 64 or 128", format.group_size);
  }
}

double bits_per_weight(const Format& format, int scale_bytes) {
  // affine stores a scale and a bias a group; the others one byte of scale.
  const int overhead_bits = format.mode == Mode::affine ? 2 * 8 * scale_bytes : 8;
  return format.bits + static_cast<double>(overhead_bits) / format.group_size;
}

}  // namespace lquant::codec
