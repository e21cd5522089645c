#include "model/ops/exact.h"

#include <mlx/mlx.h>

#include <vector>

namespace lquant::model {

mx::array in_columns(const mx::array& x, int columns, mx::Dtype dtype) {
  // In bf16 whatever the state's dtype is: a state of f32 may be kept in bf16 between two blocks.
  const auto rounded = [](const mx::array& y) { return mx::astype(mx::astype(y, mx::bfloat16), mx::float32); };
  std::vector<mx::array> parts;
  auto left = mx::stop_gradient(x);
  for (int i = 0; i < columns; ++i) {
    auto part = rounded(left);
    left = mx::subtract(left, part);
    if (i == 0) part = mx::add(part, mx::subtract(x, mx::stop_gradient(x)));  // what is added is 0, and has the gradient
    parts.push_back(mx::astype(part, dtype));
  }
  return mx::concatenate(parts, -1);
}

mx::array out_of_columns(const mx::array& x, int columns) {
  const auto parts = mx::split(mx::astype(x, mx::float32), columns, -1);
  auto sum = parts.back();  // from the least one on, so that no sum is rounded
  for (int i = columns - 2; i >= 0; --i) sum = mx::add(parts[i], sum);
  return sum;
}

}  // namespace lquant::model
