#include "kernels/chunks.h"

#include <mlx/mlx.h>

namespace lquant::kernels {
namespace {

/// Which text each token is of, int32 [B, K, C]: 0, 1, … What fills up the last chunk is of the last token's.
mx::array texts(const mx::array& segments, int chunks, int length) {
  const int batch = segments.shape(0), tokens = segments.shape(1);
  const auto before = mx::slice(segments, {0, 0}, {batch, tokens - 1}), after = mx::slice(segments, {0, 1}, segments.shape());
  const auto begins = mx::concatenate({mx::zeros({batch, 1}, mx::int32), mx::astype(mx::not_equal(before, after), mx::int32)}, 1);
  auto numbers = mx::cumsum(begins, 1);
  if (const int rest = chunks * length - tokens; rest > 0) {
    const auto last = mx::slice(numbers, {0, tokens - 1}, {batch, tokens});
    numbers = mx::concatenate({numbers, mx::broadcast_to(last, {batch, rest})}, 1);
  }
  return mx::unflatten(numbers, 1, {chunks, length});
}

}  // namespace

mx::array chunked(const mx::array& x, int chunks, int length) {
  auto shape = x.shape();
  const int rest = chunks * length - shape[1];
  shape[1] = rest;
  const auto full = rest > 0 ? mx::concatenate({x, mx::zeros(shape, x.dtype())}, 1) : x;
  return mx::unflatten(full, 1, {chunks, length});
}

mx::array chunk_at(const mx::array& x, int k) {
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start[1] = k;
  stop[1] = k + 1;
  return mx::squeeze(mx::slice(x, start, stop), 1);
}

ChunkMasks chunk_masks(const std::optional<mx::array>& segments, int chunks, int length) {
  const auto lower = mx::tri(length, length, 0, mx::bool_);
  if (!segments) return {lower};
  const auto of = texts(*segments, chunks, length);
  const int batch = of.shape(0);
  const auto last = mx::slice(of, {0, 0, length - 1}, of.shape());
  const auto before = mx::concatenate({mx::zeros({batch, 1, 1}, mx::int32), mx::slice(last, {0, 0, 0}, {batch, chunks - 1, 1})}, 1);
  const auto in_groups = [](const mx::array& x) { return mx::expand_dims(mx::astype(x, mx::float32), {2, 3}); };
  const auto same = mx::equal(mx::expand_dims(of, 3), mx::expand_dims(of, 2));
  return {mx::expand_dims(mx::logical_and(same, lower), {2, 3}), in_groups(mx::equal(of, before)), in_groups(mx::equal(of, last)),
          in_groups(mx::expand_dims(mx::equal(last, before), 3))};
}

}  // namespace lquant::kernels
