// W = scale·q + bias is linear in scale and bias, so its gradient needs nothing but the codes: d_scale = Σ dW·q and d_bias = Σ dW
// over each group. MLX's dequantize has no gradient of its own on a GPU and a slow one on a CPU, hence this op. On the CPU
// it runs our loops; elsewhere mx.dequantize computes it, and also unpacks codes: with scale 1 and bias 0 it gives the codes
// themselves, exact in any float dtype as they are below 256.
#include "kernels/dequantize.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/half.h"
#include "kernels/primitive.h"
#ifdef LQUANT_ONEDNN
#include "kernels/dequantize_loops.h"
#endif

namespace lquant::kernels {
namespace {

constexpr int kWord = 32;  // bits of a u32; also the least group size, and the K that every row is a multiple of

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(fmt::format("[kernels] dequantize_affine: {}", what));
}

void check_bits(int bits) { require(bits >= 2 && bits <= 8 && bits != 7, "bits must be 2, 3, 4, 5, 6 or 8"); }

/// The shape of the unpacked codes.
mx::Shape unpacked_shape(const mx::array& codes, int bits) {
  check_bits(bits);
  require(codes.dtype() == mx::uint32 && codes.ndim() >= 1, "codes must be u32 of one dimension or more");
  auto shape = codes.shape();
  require(shape.back() % bits == 0, "the last dimension of codes must be K·bits/32 for a K that is a multiple of 32");
  shape.back() = shape.back() / bits * kWord;
  return shape;
}

mx::Shape grouped_shape(mx::Shape unpacked, int group_size) {
  require(group_size == 32 || group_size == 64 || group_size == 128, "group_size must be 32, 64 or 128");
  require(unpacked.back() % group_size == 0, "K must be a multiple of group_size");
  unpacked.back() /= group_size;
  return unpacked;
}

/// Codes as floats through mx.dequantize with scale 1 and bias 0.
mx::array codes_as(mx::Dtype dtype, const mx::array& codes, int bits, const mx::Shape& unpacked) {
  const auto flat = mx::reshape(codes, {-1, codes.shape(-1)});
  const int groups = unpacked.back() / kWord;
  const auto ones = mx::ones({flat.shape(0), groups}, dtype), zeros = mx::zeros({flat.shape(0), groups}, dtype);
  return mx::reshape(mx::dequantize(flat, ones, zeros, kWord, bits, "affine", std::nullopt, dtype), unpacked);
}

std::vector<mx::array> gradient_by_ops(const mx::array& codes, const mx::array& gradient, int bits, int group_size, mx::Dtype dtype) {
  auto shape = unpacked_shape(codes, bits);
  const auto q = codes_as(mx::float32, codes, bits, shape);
  shape.back() /= group_size;
  shape.push_back(group_size);
  const auto dw = mx::reshape(mx::astype(gradient, mx::float32), shape);
  return {mx::astype(mx::sum(dw * mx::reshape(q, shape), -1), dtype), mx::astype(mx::sum(dw, -1), dtype)};
}

mx::array forward_by_ops(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size, mx::Dtype dtype) {
  const auto forward = [=](const std::vector<mx::array>& x) -> std::vector<mx::array> {
    return {mx::dequantize(codes, x[0], x[1], group_size, bits, "affine", std::nullopt, dtype)};
  };
  const auto vjp = [=](const std::vector<mx::array>& x, const std::vector<mx::array>& cotangents, const std::vector<mx::array>&) {
    return gradient_by_ops(codes, cotangents[0], bits, group_size, x[0].dtype());
  };
  return mx::custom_vjp(forward, vjp)({scales, biases})[0];
}

#ifdef LQUANT_ONEDNN
mx::array forward_by_loops(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size, mx::Dtype dtype) {
  const auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    cpu::dequantize_affine(in[0], in[1], in[2], bits, group_size, out[0]);
  };
  const auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                       const std::vector<mx::array>&) {
    const auto both = dequantize_affine_gradient(in[0], cotangents[0], bits, group_size, in[1].dtype());
    std::vector<mx::array> wanted;
    for (int i : argnums) {
      require(i == 1 || i == 2, "codes have no gradient");
      wanted.push_back(both[i - 1]);
    }
    return wanted;
  };
  return make_op("dequantize_affine", {codes, scales, biases}, {{unpacked_shape(codes, bits), dtype}}, compute, vjp)[0];
}
#endif

}  // namespace

mx::array dequantize_affine(const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size, mx::Dtype dtype) {
  const auto grouped = grouped_shape(unpacked_shape(codes, bits), group_size);
  require(codes.ndim() >= 2, "codes must have two dimensions or more");
  require(scales.shape() == grouped && biases.shape() == grouped, "scales and biases must be [..., N, K/group_size]");
  require(is_float(dtype) && is_float(scales.dtype()) && scales.dtype() == biases.dtype(),
          "dtypes must be float32, bfloat16 or float16, those of scales and biases alike");
#ifdef LQUANT_ONEDNN
  if (cpu_kernels()) return forward_by_loops(codes, scales, biases, bits, group_size, dtype);
#endif
  return forward_by_ops(codes, scales, biases, bits, group_size, dtype);
}

std::vector<mx::array> dequantize_affine_gradient(const mx::array& codes, const mx::array& gradient, int bits, int group_size, mx::Dtype dtype) {
  const auto unpacked = unpacked_shape(codes, bits), grouped = grouped_shape(unpacked, group_size);
  require(gradient.shape() == unpacked && is_float(gradient.dtype()) && is_float(dtype), "the gradient must be [..., N, K] of a float dtype");
#ifdef LQUANT_ONEDNN
  if (cpu_kernels()) {
    const auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
      cpu::dequantize_affine_gradient(in[0], in[1], bits, group_size, out[0], out[1]);
    };
    return make_op("dequantize_affine_gradient", {codes, gradient}, {{grouped, dtype}, {grouped, dtype}}, compute);
  }
#endif
  return gradient_by_ops(codes, gradient, bits, group_size, dtype);
}

mx::array unpack_codes(const mx::array& codes, int bits) {
  const auto shape = unpacked_shape(codes, bits);
#ifdef LQUANT_ONEDNN
  if (cpu_kernels()) {
    const auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) { cpu::unpack_codes(in[0], bits, out[0]); };
    return make_op("unpack_codes", {codes}, {{shape, mx::uint8}}, compute)[0];
  }
#endif
  return mx::astype(codes_as(mx::bfloat16, codes, bits, shape), mx::uint8);
}

mx::array pack_codes(const mx::array& codes, int bits) {
  check_bits(bits);
  require(codes.dtype() == mx::uint8 && codes.ndim() >= 1 && codes.shape(-1) % kWord == 0,
          "codes to pack must be u8 with a last dimension divisible by 32");
  auto shape = codes.shape();
  shape.back() = shape.back() / kWord * bits;
#ifdef LQUANT_ONEDNN
  if (cpu_kernels()) {
    const auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) { cpu::pack_codes(in[0], bits, out[0]); };
    return make_op("pack_codes", {codes}, {{shape, mx::uint32}}, compute)[0];
  }
#endif
  // Eight codes are `bits` bytes: they meet in one u64, whose low bytes are kept.
  const auto shifts = mx::arange(0, 8 * bits, bits, mx::uint64);
  const auto eights = mx::reshape(mx::astype(codes, mx::uint64), {-1, 8});
  const auto bytes = mx::view(mx::sum(mx::left_shift(eights, shifts), -1, true), mx::uint8);
  const auto kept = mx::contiguous(mx::slice(bytes, {0, 0}, {bytes.shape(0), bits}));
  return mx::reshape(mx::view(mx::reshape(kept, {-1, 4}), mx::uint32), shape);
}

}  // namespace lquant::kernels
