// Copies of x moved by one token each, times a tap each. Where texts meet, what was moved over their border is 0.
#include "kernels/causal_conv.h"

#include <mlx/mlx.h>

#include <stdexcept>
#include <string>

#include "kernels/causal_conv_paths.h"
#include "kernels/half.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::invalid_argument("[kernels] causal_conv: " + sentence);
}

/// x [B, T, C] moved by so many tokens, with zeros in front.
mx::array moved(const mx::array& x, int by) {
  const int length = x.shape(1);
  if (by >= length) return mx::zeros_like(x);
  const auto kept = mx::slice(x, {0, 0, 0}, {x.shape(0), length - by, x.shape(2)});
  return mx::pad(kept, std::vector<int>{1}, {by}, {0});
}

/// int32 [B, T]: how many tokens of its own text stand before each.
mx::array places_in_text(const mx::array& segments) {
  const int batch = segments.shape(0), length = segments.shape(1);
  const auto places = mx::broadcast_to(mx::arange(length, mx::int32), segments.shape());
  const auto before = mx::slice(segments, {0, 0}, {batch, length - 1}), own = mx::slice(segments, {0, 1}, {batch, length});
  const auto begins = mx::concatenate({mx::ones({batch, 1}, mx::bool_), mx::not_equal(before, own)}, 1);
  return mx::subtract(places, mx::cummax(mx::where(begins, places, mx::array(0, mx::int32)), 1));
}

}  // namespace

mx::array causal_conv_mlx(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments) {
  const int channels = taps.shape(0), count = taps.shape(1);
  const auto wide = mx::astype(x, mx::float32);
  const auto tap = [&](int back) { return mx::reshape(mx::slice(taps, {0, count - 1 - back}, {channels, count - back}), {channels}); };
  auto sum = mx::multiply(wide, tap(0));
  std::optional<mx::array> places;
  if (segments) places = places_in_text(*segments);
  for (int back = 1; back < count; ++back) {
    auto term = mx::multiply(moved(wide, back), tap(back));
    if (places) term = mx::where(mx::expand_dims(mx::greater_equal(*places, mx::array(back, mx::int32)), -1), term, mx::array(0.0f));
    sum = mx::add(sum, term);
  }
  return mx::astype(sum, x.dtype());
}

mx::array causal_conv(const mx::array& x, const mx::array& taps, const std::optional<mx::array>& segments) {
  require(x.ndim() == 3 && is_float(x.dtype()), "x is float [batch, tokens, channels]");
  require(taps.ndim() == 2 && taps.shape(0) == x.shape(2) && taps.shape(1) > 0 && is_float(taps.dtype()), "taps are float [channels, taps]");
  if (segments)
    require(segments->dtype() == mx::int32 && segments->shape() == mx::Shape{x.shape(0), x.shape(1)}, "segments are int32 [batch, tokens]");
  if (x.size() == 0) return x;
  const auto wide = mx::astype(taps, mx::float32);
#ifdef LQUANT_ONEDNN
  if (cpu_kernels() && x.dtype() != mx::float16) return causal_conv_cpu(x, wide, segments);
#endif
  if (cuda_kernels()) return causal_conv_cuda(x, wide, segments);
  return causal_conv_mlx(x, wide, segments);
}

}  // namespace lquant::kernels
