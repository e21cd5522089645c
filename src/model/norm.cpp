#include "model/norm.h"

#include <mlx/mlx.h>

#include "kernels/elementwise.h"
#include "kernels/layer_norm.h"
#include "model/ops/exact.h"
#include "model/weights.h"

namespace lquant::model {
namespace {

std::optional<mx::array> weight_of(const Tensors& tensors, const NormSpec& norm) {
  if (!norm.weight) return std::nullopt;
  if (norm.pieces == 0) {
    const auto& weight = tensor(tensors, norm.weight_name());
    return norm.factor == 1 ? weight : mx::multiply(weight, mx::array(norm.factor, weight.dtype()));
  }
  std::vector<mx::array> pieces;
  for (int i = 0; i < norm.pieces; ++i) pieces.push_back(tensor(tensors, norm.weight_name(i)));
  return mx::stack(pieces);
}

/// A weight for each head is no weight of the last axis: it multiplies behind the norm.
bool by_head(const NormSpec& norm) { return norm.rows > 0 || norm.pieces > 0; }

mx::array layer(const Tensors& tensors, const NormSpec& norm, const mx::array& x) {
  const auto weight = by_head(norm) ? std::nullopt : weight_of(tensors, norm);
  const auto bias = norm.bias ? std::optional(tensor(tensors, norm.bias_name())) : std::nullopt;
  return kernels::layer_norm(x, weight, bias, norm.eps, norm.offset);
}

mx::array l2(const NormSpec& norm, const mx::array& x) {
  const auto wide = mx::astype(x, mx::float32);
  const auto length = mx::sqrt(mx::sum(mx::square(wide), -1, /*keepdims=*/true));
  return mx::astype(mx::divide(wide, mx::maximum(length, mx::array(norm.eps))), x.dtype());
}

bool plain_rms(const NormSpec& norm) {
  return norm.kind == NormSpec::Kind::rms && norm.weight && !by_head(norm) && norm.factor == 1 && norm.groups == 1 && !norm.weighs_input &&
         !norm.reads_f32;
}

/// The weight meets what has been rounded.
mx::array in_groups(const Tensors& tensors, const NormSpec& norm, const mx::array& x) {
  const auto y = mx::reshape(kernels::rms_norm(mx::unflatten(x, -1, {norm.groups, -1}), std::nullopt, norm.eps), x.shape());
  return norm.weight ? mx::multiply(*weight_of(tensors, norm), y) : y;
}

/// Of numbers of f32: norm and weight are f32 too, and what comes of them is rounded once.
mx::array of_f32(const Tensors& tensors, const NormSpec& norm, const mx::array& x) {
  auto weight = weight_of(tensors, norm);
  if (weight) weight = mx::astype(*weight, mx::float32);
  return mx::astype(kernels::rms_norm(out_of_columns(x, kNumberColumns), weight, norm.eps, norm.offset), x.dtype());
}

}  // namespace

mx::array normed(const Tensors& tensors, const NormSpec& norm, const mx::array& x) {
  if (norm.reads_f32) return of_f32(tensors, norm, x);
  if (norm.weighs_input) return kernels::rms_norm(mx::multiply(x, *weight_of(tensors, norm)), std::nullopt, norm.eps);
  if (plain_rms(norm)) return kernels::rms_norm(x, tensor(tensors, norm.weight_name()), norm.eps, norm.offset);
  if (norm.groups > 1) return in_groups(tensors, norm, x);
  auto y = norm.kind == NormSpec::Kind::rms     ? kernels::rms_norm(x, by_head(norm) ? std::nullopt : weight_of(tensors, norm), norm.eps, norm.offset)
           : norm.kind == NormSpec::Kind::layer ? layer(tensors, norm, x)
                                                : l2(norm, x);
  if (by_head(norm)) y = mx::multiply(*weight_of(tensors, norm), y);
  return y;
}

std::pair<mx::array, mx::array> residual_norm(const Tensors& tensors, const NormSpec& norm, const mx::array& x) {
  if (plain_rms(norm)) return kernels::residual_norm(x, tensor(tensors, norm.weight_name()), norm.eps, norm.offset);
  return {x, normed(tensors, norm, x)};
}

mx::array add_norm(const Tensors& tensors, const NormSpec& norm, const mx::array& residual, const mx::array& y) {
  if (plain_rms(norm)) return kernels::add_norm(residual, y, tensor(tensors, norm.weight_name()), norm.eps, norm.offset);
  return kernels::add(residual, normed(tensors, norm, y));
}

}  // namespace lquant::model
