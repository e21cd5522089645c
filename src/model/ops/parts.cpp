#include "model/ops/parts.h"

#include <mlx/mlx.h>

namespace lquant::model {

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

}  // namespace lquant::model
