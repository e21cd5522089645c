#include "model/ops/groups.h"

#include <mlx/mlx.h>

#include "model/segments.h"

namespace lquant::model {
namespace {

mx::array whole(int value) { return mx::array(value, mx::int32); }

/// x [B, N, D] at index int32 [B, …] → [B, …, D].
mx::array rows_at(const mx::array& x, const mx::array& index) {
  const int batch = x.shape(0), length = x.shape(1);
  auto shape = mx::Shape(index.ndim(), 1);
  shape[0] = batch;
  const auto first = mx::reshape(mx::multiply(mx::arange(batch, mx::int32), whole(length)), shape);
  return mx::take(mx::reshape(x, {batch * length, -1}), mx::add(index, first), 0);
}

mx::array tokens(const mx::array& x, int from, int to) { return mx::slice(x, {0, from, 0}, {x.shape(0), to, x.shape(2)}); }

}  // namespace

Groups::Groups(const Context& context, int batch, int length, int ratio)
    : context_(context),
      ratio_(ratio),
      before_(context.cache ? context.cache->length() : context.offset),
      fresh_((length + before_ % ratio) / ratio),
      count_(context.cache ? (before_ + length) / ratio : fresh_),
      ends_(mx::array(false)),
      within_(mx::add(positions(context, batch, length), whole(1))) {
  ends_ = mx::equal(mx::remainder(within_, whole(ratio)), whole(0));
  if (fresh_ == 0) return;
  const auto place = mx::broadcast_to(mx::arange(length, mx::int32), {batch, length});
  const auto order = mx::argsort(mx::where(ends_, place, mx::add(place, whole(length))), 1);
  order_ = mx::astype(mx::slice(order, {0, 0}, {batch, fresh_}), mx::int32);
}

mx::array Groups::places() const { return mx::maximum(mx::subtract(within_, whole(ratio_)), whole(0)); }

mx::array Groups::numbers() const {
  if (context_.cache) return mx::expand_dims(mx::arange(count_, mx::int32), 0);
  return mx::subtract(mx::floor_divide(mx::take_along_axis(within_, *order_, 1), whole(ratio_)), whole(1));
}

mx::array Groups::ended() const { return mx::floor_divide(within_, whole(ratio_)); }

mx::array Groups::visible() const {
  const auto all = mx::less(mx::expand_dims(numbers(), 1), mx::expand_dims(ended(), 2));
  if (!context_.segments) return mx::broadcast_to(all, {within_.shape(0), within_.shape(1), count_});
  const auto& segments = *context_.segments;
  const auto own = mx::expand_dims(mx::take_along_axis(segments, *order_, 1), 1), there = mx::expand_dims(mx::take_along_axis(ends_, *order_, 1), 1);
  return mx::logical_and(mx::logical_and(all, there), mx::equal(own, mx::expand_dims(segments, 2)));
}

mx::array Groups::pooled(const mx::array& values, const mx::array& logits, int block) const {
  const int batch = values.shape(0), length = values.shape(1), width = values.shape(2), back = ratio_ - 1;
  auto rows = mx::concatenate({values, logits}, -1);
  if (back > 0) {
    const auto kept = context_.cache ? context_.cache->kept(block, "group") : std::nullopt;
    rows = mx::concatenate({kept ? *kept : mx::zeros({batch, back, 2 * width}, rows.dtype()), rows}, 1);
    if (context_.cache) context_.cache->keep(block, "group", tokens(rows, length, length + back));
  }
  if (fresh_ == 0) return mx::zeros_like(values);
  // A group that ends at token t begins `back` tokens before, and so many rows have come in front.
  const auto members = mx::add(mx::expand_dims(*order_, 2), mx::arange(ratio_, mx::int32));
  const auto both = mx::split(rows_at(rows, members), 2, -1);  // [B, fresh, ratio, D]
  const auto sums = mx::sum(mx::multiply(both[0], mx::softmax(both[1], 2)), 2);
  const auto rank = mx::maximum(mx::subtract(mx::cumsum(mx::astype(ends_, mx::int32), 1), whole(1)), whole(0));
  return at_ends(rows_at(sums, mx::minimum(rank, whole(fresh_ - 1))));
}

mx::array Groups::at_ends(const mx::array& rows) const { return mx::where(mx::expand_dims(ends_, 2), rows, mx::array(0, rows.dtype())); }

void Groups::keep(int block, const std::string& name, const mx::array& rows) const {
  if (!context_.cache || fresh_ == 0) return;
  const auto kept = context_.cache->kept(block, name);
  const auto own = rows_at(rows, *order_);
  context_.cache->keep(block, name, kept ? mx::concatenate({*kept, own}, 1) : own);
}

mx::array Groups::collected(int block, const std::string& name, const mx::array& rows) const {
  return context_.cache ? context_.cache->kept(block, name).value() : rows_at(rows, *order_);
}

}  // namespace lquant::model
