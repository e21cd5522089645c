// A token's place follows from the segment numbers alone: a segment begins where the number differs from the one before it.
#include "model/segments.h"

#include <mlx/mlx.h>

#include <algorithm>

namespace lquant::model {
namespace {

mx::array places(int length) { return mx::arange(length, mx::int32); }

/// [B, T]: the largest place so far at which `begins` holds.
mx::array latest(const mx::array& begins) {
  return mx::cummax(mx::where(begins, mx::broadcast_to(places(begins.shape(1)), begins.shape()), mx::array(0, mx::int32)), 1);
}

/// bool [B, T]: the first token of a segment.
mx::array begins(const mx::array& numbers) {
  const auto before = mx::slice(numbers, {0, 0}, {numbers.shape(0), numbers.shape(1) - 1}), after = mx::slice(numbers, {0, 1}, numbers.shape());
  return mx::concatenate({mx::ones({numbers.shape(0), 1}, mx::bool_), mx::not_equal(before, after)}, 1);
}

/// The first token of a segment that is a text's own and no ending: endings follow their text in the row.
mx::array begins_text(const mx::array& numbers) {
  const auto text = mx::equal(mx::remainder(numbers, mx::array(1 << Branches::kBits, mx::int32)), mx::array(0, mx::int32));
  return mx::logical_and(text, begins(numbers));
}

/// x [B, T, …] at the places int32 [B, T], 0 where `there` is false.
mx::array gathered(const mx::array& x, const mx::array& at, const mx::array& there) {
  auto shape = at.shape();
  shape.resize(x.ndim(), 1);
  auto full = x.shape();
  const auto index = mx::broadcast_to(mx::reshape(mx::maximum(at, mx::array(0, mx::int32)), shape), full);
  return mx::where(mx::reshape(there, shape), mx::take_along_axis(x, index, 1), mx::array(0, x.dtype()));
}

/// What stands `by` places before in the row [B, T, …], with zeros in front.
mx::array shifted(const mx::array& x, int by) {
  const int length = x.shape(1), kept = std::max(0, length - by);
  auto stop = x.shape(), front = x.shape();
  stop[1] = kept;
  front[1] = length - kept;
  return mx::concatenate({mx::zeros(front, x.dtype()), mx::slice(x, mx::Shape(x.ndim(), 0), stop)}, 1);
}

mx::array part(const mx::array& x, int from, int to) {
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start[1] = from;
  stop[1] = to;
  return mx::slice(x, start, stop);
}

}  // namespace

mx::array positions(const Context& context, int batch, int length) {
  if (context.branches) return context.branches->positions;
  const int offset = context.cache ? context.cache->length() : context.offset;
  if (!context.segments) return mx::broadcast_to(mx::add(places(length), mx::array(offset, mx::int32)), {batch, length});
  return mx::subtract(places(length), latest(begins(*context.segments)));
}

mx::array places_in_row(const Context& context, int batch, int length, int count) {
  const auto& numbers = *context.segments;
  const auto first = latest(begins(numbers)), wanted = places(count);
  // The position of the segment's first token: above 0 in an ending.
  const auto before = mx::expand_dims(mx::subtract(positions(context, batch, length), mx::subtract(places(length), first)), 2);
  const auto own = mx::add(mx::subtract(mx::expand_dims(first, 2), before), wanted);
  if (!context.branches) return own;
  return mx::where(mx::less(wanted, before), mx::add(mx::expand_dims(latest(begins_text(numbers)), 2), wanted), own);
}

std::vector<mx::array> preceding(const Context& context, int block, const std::string& name, const mx::array& x, int back) {
  std::vector<mx::array> all{x};
  if (back == 0) return all;
  const int length = x.shape(1);
  if (context.cache) {
    auto shape = x.shape();
    shape[1] = back;
    const auto before = context.cache->kept(block, name);
    const auto row = mx::concatenate({before ? *before : mx::zeros(shape, x.dtype()), x}, 1);
    for (int by = 1; by <= back; ++by) all.push_back(part(row, back - by, back - by + length));
    context.cache->keep(block, name, part(row, length, length + back));
    return all;
  }
  if (!context.segments) {
    for (int by = 1; by <= back; ++by) all.push_back(shifted(x, by));
    return all;
  }
  const auto own = positions(context, x.shape(0), length);
  auto shape = own.shape();
  shape.resize(x.ndim(), 1);
  for (int by = 1; by <= back; ++by) {
    const auto there = mx::greater_equal(own, mx::array(by, mx::int32));
    if (!context.branches) {
      all.push_back(mx::where(mx::reshape(there, shape), shifted(x, by), mx::array(0, x.dtype())));
      continue;
    }
    // An ending's first tokens reach back into its text, which is the latest one that began before it.
    const auto& numbers = *context.segments;
    const auto here = places(length);
    const auto trunk = latest(begins_text(numbers));
    const auto within = mx::greater_equal(mx::subtract(here, mx::array(by, mx::int32)), latest(begins(numbers)));
    const auto at = mx::where(within, mx::subtract(here, mx::array(by, mx::int32)), mx::add(trunk, mx::subtract(own, mx::array(by, mx::int32))));
    all.push_back(gathered(x, at, there));
  }
  return all;
}

}  // namespace lquant::model
