// Latents on MLX's own ops, for GPUs; the CPU's one-pass loops are in latent_cpu.cpp. Both round and clamp alike, so that a
// run may be continued on another device.
#include "kernels/latent.h"

#include <mlx/mlx.h>

#include <stdexcept>

#include "kernels/descent.h"
#include "kernels/latent_cpu.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

void check(const mx::array& matrix, const mx::array& scales, int bits, int group_size) {
  if (bits < 2 || bits > 8 || group_size < 1 || matrix.shape(-1) % group_size != 0 || scales.shape(-1) != matrix.shape(-1) / group_size ||
      scales.size() * group_size != matrix.size())
    throw std::invalid_argument("[kernels] latents: scales must have one value a group and bits lie in 2 … 8");
}

mx::Shape grouped(const mx::array& matrix, int group_size) {
  auto shape = matrix.shape();
  shape.back() /= group_size;
  shape.push_back(group_size);
  return shape;
}

mx::array by_group(const mx::array& a, int group_size) { return mx::reshape(a, grouped(a, group_size)); }
mx::array per_group(const mx::array& a) { return mx::expand_dims(a, -1); }

mx::array codes_u16(const mx::array& latents, int bits) { return mx::right_shift(latents, mx::array(16 - bits, mx::uint16)); }

}  // namespace

mx::array make_latents(const mx::array& w, const mx::array& codes, const mx::array& scales, const mx::array& biases, int bits, int group_size) {
  check(w, scales, bits, group_size);
  const auto s = per_group(mx::astype(scales, mx::float32)), b = per_group(mx::astype(biases, mx::float32));
  const auto q = by_group(mx::astype(codes, mx::float32), group_size);
  const auto zero = mx::equal(s, mx::array(0.0f));
  const auto u = mx::divide(mx::subtract(by_group(mx::astype(w, mx::float32), group_size), b), mx::where(zero, mx::array(1.0f), s));
  const float one = static_cast<float>(latent_one(bits));
  const auto place = mx::multiply(mx::add(mx::subtract(mx::where(zero, q, u), q), mx::array(0.5f)), mx::array(one));
  const auto side = mx::clip(mx::round(place), mx::array(0.0f), mx::array(one - 1));
  return mx::reshape(mx::astype(mx::add(mx::multiply(q, mx::array(one)), side), mx::uint16), w.shape());
}

mx::array latent_codes(const mx::array& latents, int bits) { return mx::astype(codes_u16(latents, bits), mx::uint8); }

mx::array latent_weight(const mx::array& latents, const mx::array& scales, const mx::array& biases, int bits, int group_size) {
  check(latents, scales, bits, group_size);
  if (latent_cpu::serves(scales.dtype())) return latent_cpu::weight(latents, scales, biases, bits, group_size);
  const auto q = by_group(mx::astype(codes_u16(latents, bits), scales.dtype()), group_size);
  return mx::reshape(mx::add(mx::multiply(q, per_group(scales)), per_group(biases)), latents.shape());
}

std::pair<mx::array, mx::array> latent_gradients(const mx::array& dw, const mx::array& latents, int bits, int group_size) {
  if (latent_cpu::serves(dw.dtype())) return latent_cpu::gradients(dw, latents, bits, group_size);
  if (fused_descent(group_size)) return descent_gradients(dw, latents, bits, group_size);
  const auto g = by_group(mx::astype(dw, mx::float32), group_size);
  const auto q = by_group(mx::astype(codes_u16(latents, bits), mx::float32), group_size);
  return {mx::sum(mx::multiply(g, q), -1), mx::sum(g, -1)};
}

std::pair<mx::array, mx::array> latent_step(const mx::array& latents, const mx::array& dw, const mx::array& scales, const mx::array& v,
                                            const LatentStep& step, int bits, int group_size) {
  check(latents, scales, bits, group_size);
  if (latent_cpu::serves(dw.dtype())) return latent_cpu::step(latents, dw, scales, v, step, bits, group_size);
  const auto g = by_group(mx::astype(dw, mx::float32), group_size);
  const auto next_v = mx::add(mx::multiply(v, mx::array(step.decay)), mx::multiply(mx::mean(mx::square(g), -1), mx::array(1 - step.decay)));
  const auto rms = mx::sqrt(mx::divide(next_v, mx::array(step.correction)));
  const auto factor = mx::divide(mx::multiply(mx::sign(mx::astype(scales, mx::float32)), mx::array(step.rate * latent_one(bits))),
                                 mx::maximum(rms, mx::array(kLatentTiny)));
  const auto moved = mx::subtract(by_group(mx::astype(latents, mx::float32), group_size), mx::multiply(g, per_group(factor)));
  const auto clipped = mx::clip(mx::round(moved), mx::array(0.0f), mx::array(static_cast<float>(kLatentMax)));
  return {mx::reshape(mx::astype(clipped, mx::uint16), latents.shape()), next_v};
}

}  // namespace lquant::kernels
