#include "model/ops/parts.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <limits>

#include "kernels/linear.h"

namespace lquant::model {

mx::array f32(const mx::array& x) { return mx::astype(x, mx::float32); }
mx::array never() { return mx::array(-std::numeric_limits<float>::infinity()); }

mx::array between(const mx::array& state, int first, int end) {
  auto start = mx::Shape(state.ndim(), 0), stop = state.shape();
  start.back() = first;
  if (end > 0) stop.back() = end;
  return mx::slice(state, start, stop);
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
