// Checks, and the same functions in MLX's own ops for devices without CPU kernels. There MLX differentiates; the gradients
// to weights are cast to f32 so that both paths give the caller one dtype, but for CUDA, where they stay what the product gave.
#include "kernels/linear.h"

#include <mlx/ops.h>
#include <mlx/primitives.h>
#include <mlx/transforms.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kernels/grouped_product.h"
#include "kernels/half.h"
#include "kernels/primitive.h"
#ifdef LQUANT_ONEDNN
#include "kernels/linear_cpu.h"
#endif

namespace lquant::kernels {
namespace {

void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(std::string("[kernels] ") + sentence);
}

void check(const mx::array& x, const std::vector<LinearWeight>& weights, const std::optional<mx::array>& residual) {
  require(x.ndim() >= 1 && is_float(x.dtype()), "linear: x must be [..., K] of float32, bfloat16 or float16");
  require(!weights.empty(), "linears: at least one weight is needed");
  for (const auto& [weight, bias] : weights) {
    require(weight.ndim() == 2 && weight.shape(1) == x.shape(-1), "linear: a weight must be [N, K] with the K of x [..., K]");
    require(weight.dtype() == x.dtype(), "linear: a weight must have the dtype of x");
    if (bias)
      require(bias->ndim() == 1 && bias->shape(0) == weight.shape(0) && bias->dtype() == x.dtype(), "linear: a bias must be [N] in the dtype of x");
  }
  if (residual) {
    auto shape = x.shape();
    shape.back() = weights[0].weight.shape(0);
    require(weights.size() == 1 && residual->shape() == shape && residual->dtype() == x.dtype(),
            "linear: the residual must be [..., N] in the dtype of x");
  }
}

using Function = std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

/// The function with gradients of all inputs from number `first` to below `last` in f32.
std::vector<mx::array> with_f32_gradients(const Function& function, const std::vector<mx::array>& inputs, std::size_t first, std::size_t last) {
  auto gradient = [=](const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents, const std::vector<mx::array>&) {
    auto gradients = mx::vjp(function, primals, cotangents).second;
    if (cuda_kernels()) return gradients;  // the kernels that take them read 16 bits as well, and half as many bytes
    for (auto i = first; i < last; ++i) gradients[i] = mx::astype(gradients[i], mx::float32);
    return gradients;
  };
  return mx::custom_vjp(function, gradient)(inputs);
}

std::vector<mx::array> linears_mlx(const mx::array& x, const std::vector<LinearWeight>& weights, const std::optional<mx::array>& residual) {
  std::vector<mx::array> inputs{x};
  for (const auto& w : weights) {
    inputs.push_back(w.weight);
    if (w.bias) inputs.push_back(*w.bias);
  }
  const auto parameters_end = inputs.size();
  if (residual) inputs.push_back(*residual);
  std::vector<bool> has_bias;
  for (const auto& w : weights) has_bias.push_back(w.bias.has_value());
  auto function = [has_bias, with_residual = residual.has_value()](const std::vector<mx::array>& in) {
    std::vector<mx::array> out;
    std::size_t next = 1;
    for (bool bias : has_bias) {
      const auto w = mx::transpose(in[next]);
      out.push_back(bias ? mx::addmm(in[next + 1], in[0], w) : mx::matmul(in[0], w));
      next += bias ? 2 : 1;
    }
    if (with_residual) out[0] = mx::add(out[0], in.back());
    return out;
  };
  return with_f32_gradients(function, inputs, 1, parameters_end);
}

/// Row r of x times the transpose of matrix ids[r] of `tables` [E, N, K], in the dtype of x: [R, N]. `ids` are sorted.
mx::array by_row(const mx::array& x, const mx::array& tables, const mx::array& ids) {
  // MLX's own CPU backend gathers products of f32 alone.
  const auto inner = mx::default_device() == mx::Device::cpu ? mx::float32 : x.dtype();
  // MLX 0.32.4 takes the stride of the rows from the axis before the last (ml-explore/mlx 4253). That of expand_dims is 1 there, and every row but
  // the first would be read from a wrong place; unflatten makes it K.
  const auto rows = mx::unflatten(mx::contiguous(mx::astype(x, inner)), 0, {x.shape(0), 1});
  const auto columns = mx::astype(mx::swapaxes(tables, 1, 2), inner);
  constexpr bool kSorted = true;
  return mx::astype(mx::squeeze(mx::gather_mm(rows, columns, std::nullopt, ids, kSorted), 1), x.dtype());
}

/// With a gradient of its own: MLX's makes such an axis of stride 1 of the gradient of y.
mx::array grouped_mlx(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets) {
  const int rows = x.shape(0), experts = weight.shape(0);
  const auto begins = mx::slice(offsets, {0}, {experts});
  const auto ends = mx::slice(offsets, {1}, {experts + 1});
  // The expert of row r is the number of experts that end at or before it.
  const auto passed = mx::greater_equal(mx::expand_dims(mx::arange(rows), 1), mx::expand_dims(ends, 0));
  const auto ids = mx::astype(mx::sum(passed, 1), mx::uint32);
  const auto segments = mx::astype(mx::stack({begins, ends}, 1), mx::uint32);

  auto function = [ids](const std::vector<mx::array>& in) {
    const auto y = by_row(in[0], in[1], ids);
    return std::vector<mx::array>{in.size() > 2 ? mx::add(y, mx::take(in[2], ids, 0)) : y};
  };
  auto gradient = [ids, segments](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<mx::array>&) {
    const auto& dy = cotangents[0];
    const auto inner = mx::default_device() == mx::Device::cpu ? mx::float32 : dy.dtype();
    const auto over_rows = [&](const mx::array& left, const mx::array& right) {
      return mx::astype(mx::segmented_mm(mx::astype(left, inner), mx::astype(right, inner), segments), mx::float32);
    };
    std::vector<mx::array> gradients{by_row(dy, mx::swapaxes(in[1], 1, 2), ids), over_rows(mx::transpose(dy), in[0])};
    if (in.size() > 2) gradients.push_back(mx::squeeze(over_rows(mx::ones({1, dy.shape(0)}), dy), 1));
    return gradients;
  };
  std::vector<mx::array> inputs{x, weight};
  if (bias) inputs.push_back(*bias);
  return mx::custom_vjp(function, gradient)(inputs)[0];
}

#ifdef LQUANT_ONEDNN
std::optional<mx::array> widened(const std::optional<mx::array>& x) { return x ? std::optional(kernels::widened(*x)) : std::nullopt; }

/// f16 in f32 products, with one rounding of each result: oneDNN's are of f32 and bf16.
std::vector<mx::array> linears_widened(const mx::array& x, const std::vector<LinearWeight>& weights, const std::optional<mx::array>& residual) {
  std::vector<LinearWeight> wide;
  for (const auto& w : weights) wide.push_back({kernels::widened(w.weight), widened(w.bias)});
  auto all = cpu::linears(mx::astype(x, mx::float32), wide, residual ? std::optional(mx::astype(*residual, mx::float32)) : std::nullopt);
  for (auto& y : all) y = mx::astype(y, mx::float16);
  return all;
}
#endif

std::vector<mx::array> dispatch(const mx::array& x, const std::vector<LinearWeight>& weights, const std::optional<mx::array>& residual) {
  check(x, weights, residual);
#ifdef LQUANT_ONEDNN
  if (cpu_kernels() && x.dtype() != mx::float16) return cpu::linears(x, weights, residual);
  if (cpu_kernels()) return linears_widened(x, weights, residual);
#endif
  return linears_mlx(x, weights, residual);
}

}  // namespace

std::vector<mx::array> linears(const mx::array& x, const std::vector<LinearWeight>& weights) { return dispatch(x, weights, std::nullopt); }

mx::array linear(const mx::array& x, const LinearWeight& weight, const std::optional<mx::array>& residual) {
  return dispatch(x, {weight}, residual)[0];
}

mx::array grouped_linear(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, const mx::array& offsets) {
  require(x.ndim() == 2 && is_float(x.dtype()), "grouped_linear: x must be [R, K] of float32, bfloat16 or float16");
  require(weight.ndim() == 3 && weight.shape(2) == x.shape(1) && weight.dtype() == x.dtype(),
          "grouped_linear: the weight must be [E, N, K] in the dtype of x");
  if (bias) {
    require(bias->ndim() == 2 && bias->shape(0) == weight.shape(0) && bias->shape(1) == weight.shape(1) && bias->dtype() == x.dtype(),
            "grouped_linear: the bias must be [E, N] in the dtype of x");
  }
  require(offsets.ndim() == 1 && offsets.shape(0) == weight.shape(0) + 1 && offsets.dtype() == mx::int32,
          "grouped_linear: offsets must be int32 [E + 1]");
#ifdef LQUANT_ONEDNN
  if (cpu_kernels() && x.dtype() != mx::float16) return cpu::grouped_linear(x, weight, bias, offsets);
  if (cpu_kernels()) {
    const auto y = cpu::grouped_linear(mx::astype(x, mx::float32), kernels::widened(weight), widened(bias), offsets);
    return mx::astype(y, mx::float16);
  }
#endif
  if (fused_grouped_product(weight) && x.size() > 0) return grouped_product(x, weight, bias, offsets);
  return grouped_mlx(x, weight, bias, offsets);
}

std::optional<GroupedGradient> grouped_gradient(const mx::array& gradient) {
#ifdef LQUANT_ONEDNN
  if (gradient.status() == mx::array::Status::unscheduled && gradient.has_primitive() &&
      std::string_view(gradient.primitive().name()) == cpu::kGroupedWeightGradient)
    return GroupedGradient{gradient.inputs()[0], gradient.inputs()[1], gradient.inputs()[2]};
#endif
  return std::nullopt;
}

SquareSums square_sums(const GroupedGradient& gradient, int group, int step) {
  require(gradient.x.shape(1) % group == 0, "square_sums: the weight's columns must be a multiple of the group");
#ifdef LQUANT_ONEDNN
  return cpu::square_sums(gradient, group, step);
#else
  throw std::invalid_argument("[kernels] square_sums needs the CPU kernels, which this build has not");
#endif
}

}  // namespace lquant::kernels
