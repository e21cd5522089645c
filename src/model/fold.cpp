#include "model/fold.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "model/ops/parts.h"

namespace lquant::model {
namespace {

/// Rows of a linear's weight or bias, those of the edge's part, divided by the scales; `axis` is that of the rows.
mx::array divided_rows(const mx::array& x, const mx::array& scales, const Part& part, int axis) {
  auto shape = scales.shape();
  shape.back() = x.shape(axis);
  if (part.rows != scales.shape(-1) || part.rows < 1 || part.row(part.rows - 1) >= shape.back())
    throw std::invalid_argument("[model] fold: a linear has not the rows that its edge scales");
  auto divisors = scales;
  if (!part.contiguous()) {
    std::vector<std::int32_t> rows(part.rows);
    for (int r = 0; r < part.rows; ++r) rows[r] = part.row(r);
    const mx::array at(rows.data(), {part.rows}, mx::int32);
    auto index = at;
    if (shape.size() == 2) index = mx::broadcast_to(at, {shape[0], part.rows});
    divisors = mx::put_along_axis(mx::ones(shape, mx::float32), index, scales, -1);
  } else if (part.rows < shape.back()) {
    auto start = mx::Shape(shape.size(), 0), stop = shape;
    start.back() = part.first, stop.back() = part.first + part.rows;
    divisors = mx::slice_update(mx::ones(shape, mx::float32), scales, start, stop);
  }
  if (axis < static_cast<int>(x.ndim()) - 1) divisors = mx::expand_dims(divisors, -1);
  return mx::divide(f32(x), divisors);
}

/// The norm's new weight in `stored`; `scales` become those that took effect.
mx::array divided_norm(const mx::array& weight, float offset, mx::array& scales, mx::Dtype stored) {
  if (weight.shape() != scales.shape()) throw std::invalid_argument("[model] fold: a norm and its edge must be equally wide");
  // What multiplies is the sum of weight and offset, rounded to the weight's dtype (kernels/norm.h).
  const auto one = mx::array(offset, stored), before = mx::astype(weight, stored), used = f32(mx::add(before, one));
  const auto wanted = mx::divide(used, scales);
  // Rounded as a sum first: then the sum comes back as it was, in f32 too, and the scales that took effect lead to this very weight again.
  const auto rounded = mx::subtract(mx::astype(wanted, stored), one), now = f32(mx::add(rounded, one));
  // What storage makes of it must still be near: a channel beside 0, or one that an offset drowns, keeps its weight.
  const auto near = mx::less(mx::abs(mx::subtract(now, wanted)), mx::multiply(mx::abs(wanted), mx::array(0.125f)));
  scales = mx::where(near, mx::divide(used, now), mx::ones_like(scales));
  return mx::where(near, rounded, before);
}

/// What passes an activation of degree n comes out as the n-th power of what it was divided by.
mx::array divisors_of(const Edge& edge, const mx::array& scales) { return edge.degree == 2 ? mx::sqrt(scales) : scales; }

mx::array divided_weight(const Edge& edge, const mx::array& scales, const mx::array& weight) {
  return divided_rows(weight, divisors_of(edge, scales), edge.rows, static_cast<int>(weight.ndim()) - 2);
}

mx::array multiplied_columns(const Edge& edge, const mx::array& scales, const mx::array& weight) {
  const auto columns = column_scales(edge, scales);
  if (weight.shape(-1) != columns.shape(-1)) throw std::invalid_argument("[model] fold: a consumer is not as wide as the edge at " + edge.producer);
  return mx::multiply(f32(weight), columns.ndim() == 2 ? mx::expand_dims(columns, -2) : columns);
}

}  // namespace

mx::array column_scales(const Edge& edge, const mx::array& scales) {
  if (edge.repeats == 1) return scales;  // each column reads the channel of its number
  std::vector<std::int32_t> channel(edge.channels * edge.repeats);
  for (int c = 0; c < static_cast<int>(channel.size()); ++c) channel[c] = edge.channel(c);
  return mx::take(scales, mx::array(channel.data(), {static_cast<int>(channel.size())}, mx::int32), -1);
}

mx::array fold_producer(const Edge& edge, const mx::array& scales, Tensors& tensors, mx::Dtype stored) {
  const auto expected = edge.experts > 0 ? mx::Shape{edge.experts, edge.channels} : mx::Shape{edge.channels};
  if (scales.shape() != expected || scales.dtype() != mx::float32)
    throw std::invalid_argument("[model] fold: scales must be f32, one for each channel of the edge at " + edge.producer);
  auto used = scales;
  const auto weight = tensors.find(edge.producer + ".weight");
  const auto divisors = divisors_of(edge, used);
  if (edge.norm) {
    weight->second = divided_norm(weight->second, edge.norm->offset, used, stored);
    if (edge.norm->bias) {
      auto& bias = tensors.at(edge.norm->bias_name());
      bias = mx::divide(f32(bias), used);
    }
  } else if (tensors.contains(edge.producer + ".scales")) {
    for (const char* part : {".scales", ".biases"}) {
      const auto found = tensors.find(edge.producer + part);
      if (found == tensors.end()) continue;
      auto& x = found->second;
      x = mx::astype(divided_rows(x, divisors, edge.rows, static_cast<int>(x.ndim()) - 2), x.dtype());
    }
  } else if (weight != tensors.end()) {
    weight->second = divided_weight(edge, used, weight->second);
  }
  if (!edge.norm) {
    if (const auto bias = tensors.find(edge.producer + ".bias"); bias != tensors.end())
      bias->second = divided_rows(bias->second, divisors, edge.rows, static_cast<int>(bias->second.ndim()) - 1);
  }
  return used;
}

void fold_consumers(const Edge& edge, const mx::array& scales, Tensors& tensors) {
  for (const auto& path : edge.consumers)
    if (const auto consumer = tensors.find(path + ".weight"); consumer != tensors.end() && !tensors.contains(path + ".scales"))
      consumer->second = multiplied_columns(edge, scales, consumer->second);
}

mx::array fold(const Edge& edge, const mx::array& scales, Tensors& tensors, mx::Dtype stored) {
  auto used = fold_producer(edge, scales, tensors, stored);
  fold_consumers(edge, used, tensors);
  return used;
}

mx::array folded_weight(const ModelSpec& spec, int block, const Folds& folds, const std::string& path, const mx::array& weight) {
  auto folded = weight;
  for (const auto& edge : spec.edges_of(block)) {
    const auto it = folds.find(edge.producer);
    if (it == folds.end()) continue;
    if (edge.producer == path && !edge.norm) folded = divided_weight(edge, it->second, folded);
    if (std::find(edge.consumers.begin(), edge.consumers.end(), path) != edge.consumers.end()) folded = multiplied_columns(edge, it->second, folded);
  }
  return folded;
}

void fold_block(const ModelSpec& spec, int block, const Folds& folds, Tensors& tensors, mx::Dtype stored) {
  for (const auto& edge : spec.edges_of(block)) {
    const auto it = folds.find(edge.producer);
    if (it != folds.end()) fold(edge, it->second, tensors, stored);
  }
}

}  // namespace lquant::model
