#include "model/ops/parts.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <limits>

#include "kernels/linear.h"
#include "kernels/rope.h"
#include "model/ops/attention.h"

namespace lquant::model {

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }
mx::array never() { return mx::array(-std::numeric_limits<float>::infinity()); }

mx::array between(const mx::array& state, int first, int end) {
  auto start = mx::Shape(state.ndim(), 0), stop = state.shape();
  start.back() = first;
  if (end > 0) stop.back() = end;
  return mx::slice(state, start, stop);
}

mx::array remembered(const Scope& scope, const std::string& name, const mx::array& x, int axis) {
  auto* cache = scope.context.cache;
  if (!cache) return x;
  const auto before = cache->kept(scope.block, name);
  const auto all = before ? mx::concatenate({*before, x}, axis) : x;
  cache->keep(scope.block, name, all);
  return all;
}

mx::array turned(const Scope& scope, const std::optional<RopeSpec>& rope, const mx::array& x) {
  if (!rope) return x;
  const auto& context = scope.context;
  const auto inv_freq = inverse_frequencies(*rope, longest_text(context, x.shape(1)));
  const int offset = context.cache ? context.cache->length() : context.offset;
  return kernels::rope(x, inv_freq, offset, rope->magnitude, rope->interleaved,
                       context.branches ? std::optional(context.branches->positions) : std::nullopt);
}

mx::array columns_of(const mx::array& product, const Part& part) {
  auto shape = product.shape();
  if (part.contiguous()) {
    auto start = mx::Shape(shape.size(), 0);
    start.back() = part.first;
    shape.back() = part.first + part.rows;
    return mx::slice(product, start, shape);
  }
  auto grouped = shape;
  grouped.back() = part.rows / part.run;
  grouped.push_back(part.stride);
  auto start = mx::Shape(grouped.size(), 0), stop = grouped;
  start.back() = part.first;
  stop.back() = part.first + part.run;
  shape.back() = part.rows;
  return mx::reshape(mx::slice(mx::reshape(product, grouped), start, stop), shape);
}

mx::array through_each(const mx::array& x, const mx::array& stack) {
  return mx::swapaxes(mx::matmul(mx::swapaxes(x, 1, 2), mx::swapaxes(stack, 1, 2)), 1, 2);
}

std::vector<mx::array> products_of_parts(const Scope& scope, const LinearSpec& linear, const mx::array& x) {
  if (std::all_of(linear.parts.begin(), linear.parts.end(), [](const Part& part) { return part.contiguous(); })) {
    std::vector<kernels::LinearWeight> weights;
    for (const auto& part : linear.parts) weights.push_back(scope.weight(linear, part));
    return kernels::linears(x, weights);
  }
  const auto y = kernels::linear(x, scope.weight(linear));
  std::vector<mx::array> all;
  for (const auto& part : linear.parts) all.push_back(columns_of(y, part));
  return all;
}

}  // namespace lquant::model
