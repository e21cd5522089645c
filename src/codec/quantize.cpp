// On a CPU our loops do what MLX's single-threaded ones do; on a GPU, and where the loops are not built, MLX itself is called, so
// that the result equals that of mx.quantize on the same device in the last bit.
#include "codec/quantize.h"

#include <mlx/mlx.h>

#include "base/error.h"
#include "kernels/primitive.h"
#ifdef LQUANT_ONEDNN
#include "codec/quantize_loops.h"
#endif

namespace lquant::codec {
namespace {

std::string show(const mx::Shape& shape) {
  std::string text;
  for (int d : shape) text += (text.empty() ? "" : ", ") + std::to_string(d);
  return "[" + text + "]";
}

#ifdef LQUANT_ONEDNN
/// Shape of codes, or of scales.
mx::Shape with_columns(const mx::array& w, int columns) {
  auto shape = w.shape();
  shape.back() = columns;
  return shape;
}
#endif

}  // namespace

void check_weight(const mx::array& w, const Format& format) {
  check(format);
  if (w.dtype() != mx::float32 && w.dtype() != mx::bfloat16 && w.dtype() != mx::float16) {
    fail("codec", "only float32, bfloat16 and float16 weights can be quantized; convert the checkpoint to one of these");
  }
  if (w.ndim() < 2 || w.size() == 0) fail("codec", "a weight of shape {} has no rows or columns to quantize; leave it unquantized", show(w.shape()));
  if (w.shape(-1) % format.group_size != 0) {
    fail("codec",
         "a weight of shape {} cannot be cut into groups of {}: {} is no multiple of it; choose a smaller group size or leave it unquantized",
         show(w.shape()), format.group_size, w.shape(-1));
  }
}

Packed quantize(const mx::array& w, const Format& format) {
  check_weight(w, format);
#ifdef LQUANT_ONEDNN
  if (kernels::cpu_kernels()) {
    const bool affine = format.mode == Mode::affine;
    const auto groups = with_columns(w, w.shape(-1) / format.group_size);
    std::vector<kernels::Output> outputs{{with_columns(w, w.shape(-1) * format.bits / 32), mx::uint32}, {groups, affine ? w.dtype() : mx::uint8}};
    if (affine) outputs.push_back({groups, w.dtype()});
    const auto compute = [format](const std::vector<mx::array>& in, std::vector<mx::array>& out) { cpu::quantize(in[0], format, out); };
    const auto made = kernels::make_op("quantize", {w}, outputs, compute);
    return {made[0], made[1], affine ? std::optional(made[2]) : std::nullopt};
  }
#endif
  const auto made = mx::quantize(w, format.group_size, format.bits, to_string(format.mode));
  return {made[0], made[1], made.size() > 2 ? std::optional(made[2]) : std::nullopt};
}

mx::array dequantize(const Packed& packed, const Format& format, mx::Dtype dtype) {
  check(format);
  if (format.mode == Mode::affine) {
    if (!packed.biases) throw std::invalid_argument("[codec] dequantize: affine weights need biases");
    return kernels::dequantize_affine(packed.codes, packed.scales, *packed.biases, format.bits, format.group_size, dtype);
  }
#ifdef LQUANT_ONEDNN
  if (kernels::cpu_kernels()) {
    const auto columns = packed.scales.shape(-1) * format.group_size;
    auto expected = with_columns(packed.scales, columns * format.bits / 32);
    if (packed.codes.dtype() != mx::uint32 || packed.scales.dtype() != mx::uint8 || packed.codes.shape() != expected) {
      throw std::invalid_argument("[codec] dequantize: codes must be u32 [..., N, K·bits/32] and scales u8 [..., N, K/group_size]");
    }
    const auto compute = [format](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
      cpu::dequantize_float(in[0], in[1], format, out[0]);
    };
    return kernels::make_op("dequantize_float", {packed.codes, packed.scales}, {{with_columns(packed.codes, columns), dtype}}, compute)[0];
  }
#endif
  return mx::dequantize(packed.codes, packed.scales, std::nullopt, format.group_size, format.bits, to_string(format.mode), std::nullopt, dtype);
}

}  // namespace lquant::codec
