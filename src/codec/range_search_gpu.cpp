// The host's side of range_search.cu, and errors by MLX's ops, some rows at a time.
#include "codec/range_search_gpu.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "codec/cuda_text.h"
#include "codec/feedback_gpu.h"
#include "codec/quantize.h"
#include "kernels/cuda_module.h"

namespace lquant::codec::gpu {
namespace {

constexpr int kThreads = 128;                 // four warps, as range_search.cu has room for
constexpr std::size_t kMostBlocks = 1 << 16;  // beyond, a warp takes several groups
constexpr int kPartWeights = 1 << 26;         // whose errors are made at once, in f32

mx::Shape with_columns(const mx::array& w, int columns) {
  auto shape = w.shape();
  shape.back() = columns;
  return shape;
}

/// Importance as f32 rows [R, K], one for every `share` rows of w, and the power of two that brings the largest into [1, 2): it changes no comparison
/// and keeps f32 sums from overflowing.
struct Importance {
  mx::array values;
  int share;
  float scale = 1;  ///< what importances are multiplied by

  Importance(const mx::array& w, const std::optional<mx::array>& given) : values(mx::ones({1, w.shape(-1)})) {
    const int columns = w.shape(-1), rows = static_cast<int>(w.size() / columns);
    share = rows;
    if (!given) return;
    values = mx::contiguous(mx::reshape(mx::astype(*given, mx::float32), {-1, columns}));
    share = rows / values.shape(0);
    const auto largest = mx::max(values);
    const auto good = mx::all(mx::logical_and(mx::isfinite(values), mx::greater_equal(values, mx::array(0.0f))));
    mx::eval(values, largest, good);
    if (!good.item<bool>()) throw std::invalid_argument("[codec] importance must be finite and not negative");
    if (largest.item<float>() > 0) scale = std::ldexp(1.0f, -std::ilogb(largest.item<float>()));
  }
};

kernels::CudaCall over_groups(const char* function, const char* arguments, const mx::array& w, mx::Dtype scales, const Format& format) {
  const auto groups = w.size() / format.group_size;
  const auto types = fmt::format("{}, {}", kernels::cuda_type(w.dtype()), kernels::cuda_type(scales));
  const auto blocks = std::min<std::size_t>((groups + 3) / 4, kMostBlocks);
  return {fmt::format("lquant_{}", function),
          range_search_cu(),
          fmt::format("lquant::{}<{}>({});", function, types, arguments),
          {{"w", w}},
          {},
          {{"n", format.group_size}, {"bits", format.bits}, {"groups", static_cast<int>(groups)}},
          static_cast<int>(blocks),
          kThreads};
}

/// Errors of some rows of w: Σ h (w − ŵ)², Σ (w − ŵ)² and the largest |w − ŵ|, in f32: a sum of tens of millions in MLX's tree of partial sums.
struct PartErrors {
  mx::array weighted, square, largest;
};

PartErrors errors_of(const mx::array& w, const mx::array& back, const mx::array& h) {
  const auto d = mx::subtract(mx::astype(w, mx::float32), back), square = mx::square(d);
  return {mx::sum(mx::multiply(h, square)), mx::sum(square), mx::max(mx::abs(d))};
}

/// Calls take(errors) for parts of the rows; the importance is multiplied by h.scale.
template <class Take>
void each_part(const mx::array& w, const Packed& packed, const Format& format, const Importance& h, const Take& take) {
  const int columns = w.shape(-1), rows = static_cast<int>(w.size() / columns), part = std::max(1, kPartWeights / columns);
  const auto flat = [](const mx::array& x) { return mx::reshape(x, {-1, x.shape(-1)}); };
  const auto flat_w = flat(w);
  const Packed flat_packed{flat(packed.codes), flat(packed.scales), packed.biases ? std::optional(flat(*packed.biases)) : std::nullopt};
  const auto scaled = mx::multiply(h.values, mx::array(h.scale));
  for (int first = 0; first < rows; first += part) {
    const int end = std::min(rows, first + part);
    const auto cut = [&](const mx::array& x) { return mx::slice(x, {first, 0}, {end, x.shape(1)}); };
    auto some = flat_packed;
    some.codes = cut(some.codes), some.scales = cut(some.scales);
    if (some.biases) some.biases = cut(*some.biases);
    const auto of_row = h.share == rows ? scaled : mx::take(scaled, mx::floor_divide(mx::arange(first, end, mx::int32), mx::array(h.share)), 0);
    // Rounded as on a CPU: MLX's own kernel may fuse the product and the sum.
    const auto back = format.mode == Mode::affine ? gpu::values_of({unpack_codes(some.codes, format.bits), some.scales, *some.biases}, format)
                                                  : dequantize(some, format, mx::float32);
    take(errors_of(cut(flat_w), back, of_row));
  }
}

}  // namespace

RangeSearchResult range_search(const mx::array& w, const Format& format, const std::optional<mx::array>& importance, mx::Dtype scale_dtype) {
  const Importance h(w, importance);
  auto call =
      over_groups("range_search", "w, h, n, bits, columns, share, unit, groups, codes, scales, biases, plain_error, error", w, scale_dtype, format);
  const auto groups = with_columns(w, w.shape(-1) / format.group_size);
  call.inputs.push_back({"h", h.values});
  call.outputs = {{"codes", with_columns(w, w.shape(-1) * format.bits / 32), mx::uint32},
                  {"scales", groups, scale_dtype},
                  {"biases", groups, scale_dtype},
                  {"plain_error", groups, mx::float32},
                  {"error", groups, mx::float32}};
  call.scalars.insert(call.scalars.end(), {{"columns", w.shape(-1)}, {"share", h.share}, {"unit", h.scale}});
  const auto made = kernels::call(call);
  auto plain = mx::sum(made[3]), found = mx::sum(made[4]);
  mx::eval(made[0], made[1], made[2], plain, found);
  return {{made[0], made[1], made[2]}, plain.item<float>() / double{h.scale}, found.item<float>() / double{h.scale}};
}

mx::array requantize_codes(const mx::array& w, const mx::array& scales, const mx::array& biases, const Format& format) {
  auto call = over_groups("nearest_codes", "w, scales, biases, n, bits, groups, codes", w, scales.dtype(), format);
  call.inputs.insert(call.inputs.end(), {{"scales", scales}, {"biases", biases}});
  call.outputs = {{"codes", with_columns(w, w.shape(-1) * format.bits / 32), mx::uint32}};
  auto codes = kernels::call(call)[0];
  codes.eval();
  return codes;
}

QuantizationError measure_error(const mx::array& w, const Packed& packed, const Format& format, const std::optional<mx::array>& importance) {
  const Importance h(w, importance);
  QuantizationError error{0, 0, 0};
  each_part(w, packed, format, h, [&](PartErrors part) {
    mx::eval(part.weighted, part.square, part.largest);
    error.weighted += part.weighted.item<float>() / double{h.scale};
    error.mean_square += part.square.item<float>() / static_cast<double>(w.size());
    const double found = part.largest.item<float>();  // NaN where one is
    error.max_abs = found <= error.max_abs ? error.max_abs : found;
  });
  return error;
}

double weighted_error(const mx::array& w, const Packed& packed, const Format& format, const std::optional<mx::array>& importance) {
  const Importance h(w, importance);
  double error = 0;
  each_part(w, packed, format, h, [&](PartErrors part) { error += part.weighted.item<float>() / double{h.scale}; });
  return error;
}

}  // namespace lquant::codec::gpu
