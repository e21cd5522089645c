// Around the search of one group (group_search.h): arrays brought to host memory, rows dealt to threads, codes packed, errors added
// in an order that does not depend on the threads.
#include "kernels/multiversion.h"
LQUANT_EXACT_ARITHMETIC

#include "codec/range_search.h"

#include <mlx/mlx.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "codec/group_search.h"
#include "codec/quantize.h"
#include "codec/range_search_gpu.h"
#include "kernels/bits.h"
#include "kernels/parallel.h"
#include "kernels/primitive.h"

namespace lquant::codec {
namespace {

constexpr int kMaxGroup = 128;
constexpr std::int64_t kRowGrain = 4;  // a row is thousands of weights, each of which costs a microsecond

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(std::string("[codec] ") + what);
}

/// In host memory and row-contiguous, wherever it was.
mx::array on_host(const mx::array& x) {
  auto copy = mx::contiguous(x, false, mx::Device::cpu);
  copy.eval();
  copy.data<char>();  // MLX brings what is on a CUDA device over when first asked for it, and not safely for several threads that ask at once
  return copy;
}

bool is_float(mx::Dtype t) { return t == mx::float32 || t == mx::bfloat16 || t == mx::float16; }

mx::Shape with_columns(const mx::array& w, int columns) {
  auto shape = w.shape();
  shape.back() = columns;
  return shape;
}

void check_importance(const mx::array& w, const std::optional<mx::array>& given) {
  if (!given) return;
  auto each = w.shape();
  each.erase(each.end() - 2);
  require(is_float(given->dtype()) && (given->shape() == mx::Shape{w.shape(-1)} || given->shape() == each || given->shape() == w.shape()),
          "importance must be a float array [K], [..., K] with the leading dimensions of the weight, or of the weight's own shape");
}

/// Importance as f32 rows of K, one for every `share` rows of w, scaled by a power of two to have its maximum in [1, 2): that changes
/// no comparison and keeps f32 sums from overflowing.
struct Importance {
  std::vector<float> values;
  std::int64_t columns, share;
  double unit = 1;  ///< what the scaled errors are multiplied by

  Importance(const mx::array& w, const std::optional<mx::array>& given) : columns(w.shape(-1)) {
    const auto rows = static_cast<std::int64_t>(w.size()) / columns;
    if (!given) {
      values.assign(columns, 1.0f);
      share = rows;
      return;
    }
    const auto host = on_host(mx::astype(*given, mx::float32, mx::Device::cpu));
    values.assign(host.data<float>(), host.data<float>() + host.size());
    share = rows / (static_cast<std::int64_t>(values.size()) / columns);
    float largest = 0;
    for (float h : values) {
      require(h >= 0 && std::isfinite(h), "importance must be finite and not negative");
      largest = std::max(largest, h);
    }
    if (largest == 0) return;
    const int exponent = std::ilogb(largest);
    for (float& h : values) h = std::ldexp(h, -exponent);
    unit = std::ldexp(1.0, exponent);
  }
  const float* row(std::int64_t r) const { return values.data() + r / share * columns; }
};

/// One matrix under search, in host memory.
struct Job {
  const mx::array& w;
  const Format& format;
  const Importance& importance;
  mx::array &codes, &scales, &biases;
  std::vector<double>&plain, &found;  ///< errors by row

  std::int64_t columns() const { return w.shape(-1); }
};

LQUANT_INLINE void load(const mx::array& w, std::int64_t at, int n, float* values) {
  kernels::with_storage(w.dtype(), [&](auto storage) LQUANT_INLINE_LAMBDA {
    using W = decltype(storage);
    const auto* from = w.data<typename W::Bits>() + at;
    for (int j = 0; j < n; ++j) values[j] = W::load(from[j]);
  });
}

struct Buffers {
  alignas(64) float w[kMaxGroup];
  alignas(64) std::uint8_t plain[kMaxGroup];
  alignas(64) std::uint8_t codes[kMaxGroup];
};

/// Writes the group's codes to b.codes; returns the scale and bias as stored, and adds to the errors.
template <class S>
LQUANT_INLINE ScaleBias solve_group(const float* h, int n, int bits, Buffers& b, double& plain_error, double& found_error) {
  const float top = static_cast<float>((1 << bits) - 1);
  Group g{b.w, h, n, top, range_of(b.w, n), 0, 0};
  for (int j = 0; j < n; ++j) g.sum_h += h[j], g.sum_hw += static_cast<double>(h[j]) * b.w[j];
  const auto rule = affine_rule(g.range, top);
  const auto plain = stored<S>(rule);
  affine_codes(b.w, n, rule, top, b.codes);
  const double before = error_of<S>(g, plain, b.codes);
  plain_error += before;
  // Nothing to gain, or (NaN) nothing that can be judged.
  if (!(before > 0) || !(g.sum_h > 0) || !(std::abs(plain.scale) > 0)) {
    found_error += before;
    return plain;
  }
  std::copy(b.codes, b.codes + n, b.plain);
  auto best = evaluate<S>(g, plain);
  search_group<S>(g, effort_for(bits), best);
  nearest_codes<S>(b.w, n, best.at, top, b.codes);
  const double after = error_of<S>(g, best.at, b.codes);
  if (after < before) {
    found_error += after;
    return best.at;
  }
  std::copy(b.plain, b.plain + n, b.codes);
  found_error += before;
  return plain;
}

template <class S>
LQUANT_INLINE void search_rows(const Job& job, std::int64_t begin, std::int64_t end) {
  const int n = job.format.group_size, bits = job.format.bits;
  const auto groups = job.columns() / n;
  auto* scales = job.scales.data<typename S::Bits>();
  auto* biases = job.biases.data<typename S::Bits>();
  Buffers b;
  for (auto r = begin; r < end; ++r) {
    for (std::int64_t c = 0; c < groups; ++c) {
      const auto i = r * groups + c;
      load(job.w, i * n, n, b.w);
      const auto at = solve_group<S>(job.importance.row(r) + c * n, n, bits, b, job.plain[r], job.found[r]);
      scales[i] = S::store(at.scale);
      biases[i] = S::store(at.bias);
      kernels::squeeze_codes(b.codes, job.codes.data<std::uint32_t>() + i * (n * bits / 32), n, bits);
    }
  }
}

LQUANT_MULTIVERSION void search_range(const Job& job, std::int64_t begin, std::int64_t end) {
  kernels::with_storage(job.scales.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA { search_rows<decltype(s)>(job, begin, end); });
}

template <class S>
LQUANT_INLINE void nearest_groups(const mx::array& w, const mx::array& scales, const mx::array& biases, const Format& f, mx::array& codes,
                                  std::int64_t begin, std::int64_t end) {
  const int n = f.group_size;
  Buffers b;
  for (auto i = begin; i < end; ++i) {
    load(w, i * n, n, b.w);
    const ScaleBias at{S::load(scales.data<typename S::Bits>()[i]), S::load(biases.data<typename S::Bits>()[i])};
    nearest_codes<S>(b.w, n, at, static_cast<float>((1 << f.bits) - 1), b.codes);
    kernels::squeeze_codes(b.codes, codes.data<std::uint32_t>() + i * (n * f.bits / 32), n, f.bits);
  }
}

LQUANT_MULTIVERSION void nearest_range(const mx::array& w, const mx::array& scales, const mx::array& biases, const Format& f, mx::array& codes,
                                       std::int64_t begin, std::int64_t end) {
  kernels::with_storage(scales.dtype(), [&](auto s) LQUANT_INLINE_LAMBDA { nearest_groups<decltype(s)>(w, scales, biases, f, codes, begin, end); });
}

mx::array host_array(const mx::Shape& shape, mx::Dtype dtype) {
  mx::array made(shape, dtype, nullptr, {});
  made.set_data(mx::allocator::malloc(made.nbytes()));
  made.set_status(mx::array::Status::available);
  return made;
}

double total(const std::vector<double>& rows, double unit) {
  double sum = 0;
  for (double r : rows) sum += r;
  return sum * unit;
}

}  // namespace

RangeSearchResult range_search(const mx::array& w, const Format& format, const std::optional<mx::array>& importance,
                               std::optional<mx::Dtype> scale_dtype) {
  check_weight(w, format);
  if (format.mode != Mode::affine) {
    const auto packed = quantize(w, format);
    const double error = weighted_error(w, packed, format, importance);
    return {packed, error, error};
  }
  const auto dtype = scale_dtype.value_or(w.dtype());
  require(is_float(dtype), "scales must be float32, bfloat16 or float16");
  check_importance(w, importance);
  if (kernels::cuda_kernels()) return gpu::range_search(w, format, importance, dtype);
  const auto host = on_host(w);
  const Importance h(w, importance);
  const auto groups = with_columns(w, w.shape(-1) / format.group_size);
  auto codes = host_array(with_columns(w, w.shape(-1) * format.bits / 32), mx::uint32), scales = host_array(groups, dtype),
       biases = host_array(groups, dtype);
  const auto rows = static_cast<std::int64_t>(w.size()) / w.shape(-1);
  std::vector<double> plain(rows), found(rows);
  const Job job{host, format, h, codes, scales, biases, plain, found};
  kernels::parallel_for(rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) { search_range(job, begin, end); });
  return {{codes, scales, biases}, total(plain, h.unit), total(found, h.unit)};
}

mx::array requantize_codes(const mx::array& w, const mx::array& scales, const mx::array& biases, const Format& format) {
  check_weight(w, format);
  require(format.mode == Mode::affine, "codes are found for affine scales and biases only");
  const auto groups = with_columns(w, w.shape(-1) / format.group_size);
  require(scales.shape() == groups && biases.shape() == groups && is_float(scales.dtype()) && scales.dtype() == biases.dtype(),
          "scales and biases must be [..., N, K/group_size] of one float dtype");
  if (kernels::cuda_kernels()) return gpu::requantize_codes(w, scales, biases, format);
  const auto host = on_host(w), host_scales = on_host(scales), host_biases = on_host(biases);
  auto codes = host_array(with_columns(w, w.shape(-1) * format.bits / 32), mx::uint32);
  constexpr std::int64_t kGroupGrain = 256;  // tens of microseconds
  kernels::parallel_for(static_cast<std::int64_t>(scales.size()), kGroupGrain,
                        [&](std::int64_t begin, std::int64_t end) { nearest_range(host, host_scales, host_biases, format, codes, begin, end); });
  return codes;
}

QuantizationError measure_error(const mx::array& w, const Packed& packed, const Format& format, const std::optional<mx::array>& importance) {
  check_weight(w, format);
  check_importance(w, importance);
  if (kernels::cuda_kernels()) return gpu::measure_error(w, packed, format, importance);
  const auto back = on_host(dequantize(packed, format, mx::float32)), host = on_host(w);
  require(back.shape() == w.shape(), "the packed weight and the original must have one shape");
  const Importance h(w, importance);
  const std::int64_t columns = w.shape(-1), rows = static_cast<std::int64_t>(w.size()) / columns;
  std::vector<double> weighted(rows), square(rows), largest(rows);
  kernels::parallel_for(rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> values(columns);
    for (auto r = begin; r < end; ++r) {
      load(host, r * columns, static_cast<int>(columns), values.data());
      const float *found = back.data<float>() + r * columns, *importances = h.row(r);
      for (std::int64_t j = 0; j < columns; ++j) {
        const double d = static_cast<double>(values[j]) - found[j];
        weighted[r] += importances[j] * d * d;
        square[r] += d * d;
        largest[r] = std::abs(d) <= largest[r] ? largest[r] : std::abs(d);  // a NaN is kept
      }
    }
  });
  double max_abs = 0;
  for (double m : largest) max_abs = m <= max_abs ? max_abs : m;
  return {total(weighted, h.unit), total(square, 1.0 / static_cast<double>(w.size())), max_abs};
}

double weighted_error(const mx::array& w, const Packed& packed, const Format& format, const std::optional<mx::array>& importance) {
  if (!kernels::cuda_kernels()) return measure_error(w, packed, format, importance).weighted;
  check_weight(w, format);
  check_importance(w, importance);
  return gpu::weighted_error(w, packed, format, importance);
}

}  // namespace lquant::codec
