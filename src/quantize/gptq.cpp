// With H = U · D · Uᵀ (U unit upper triangular) the error of a row is Σ_j D_j · (e_j + Σ_{i<j} e_i U_ij)²: each column's best answer to the
// errors before it is in U itself, and no inverse of H is ever made. What follows the one pass of rounding is descent on the same sum.
#include "quantize/gptq.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "codec/feedback.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "kernels/cholesky.h"
#include "kernels/linear.h"

namespace lquant::quantize {
namespace {

using Clock = std::chrono::steady_clock;

// Weights that are worked on at once: their f32 copies, errors and sums take about 20 bytes each.
constexpr int kPartWeights = 1 << 26;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

mx::array on_host(const mx::array& x) {
  auto copy = mx::contiguous(mx::copy(x, mx::Device::cpu), false, mx::Device::cpu);
  copy.eval();
  return copy;
}

std::vector<float> diagonal_of(const mx::array& h) {
  const auto d = on_host(mx::diagonal(h));
  return {d.data<float>(), d.data<float>() + d.size()};
}

bool all_finite(const mx::array& x) { return mx::all(mx::isfinite(x)).item<bool>(); }

/// x · aᵀ on the kernels' fast product.
mx::array product(const mx::array& x, const mx::array& a) { return kernels::linear(x, {a, std::nullopt}); }

/// H / tokens + λI. Inputs that were always zero meet nothing: their columns are rounded plainly by the λ alone.
mx::array damped(const mx::array& moment, double tokens, double damp, double mean) {
  const int k = moment.shape(0);
  const double lambda = mean > 0 ? damp * mean : 1;
  return mx::add(mx::multiply(moment, mx::array(static_cast<float>(1 / std::max(1.0, tokens)))),
                 mx::multiply(mx::eye(k, k, 0, mx::float32), mx::array(static_cast<float>(lambda))));
}

std::vector<int> visiting_order(ActOrder act_order, const std::vector<float>& moments, int group) {
  std::vector<int> order(moments.size());
  std::iota(order.begin(), order.end(), 0);
  if (act_order == ActOrder::off) return order;
  std::vector<float> leader(moments.size() / group);
  for (std::size_t g = 0; g < leader.size(); ++g) leader[g] = *std::max_element(moments.begin() + g * group, moments.begin() + (g + 1) * group);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const int x = a / group, y = b / group;
    if (act_order == ActOrder::gar && x != y) return leader[x] != leader[y] ? leader[x] > leader[y] : x < y;
    return moments[a] > moments[b];
  });
  return order;
}

mx::array as_indices(const std::vector<int>& order) { return mx::array(order.data(), {static_cast<int>(order.size())}, mx::int32); }

/// w · S · (H + λI)⁻¹: the whole step of the correction.
mx::array correction_step(const mx::array& weight, const calibration::Hessian& h, const mx::array& damped_hessian) {
  const auto shifted =
      product(mx::multiply(weight, mx::array(static_cast<float>(1 / std::max(1.0, h.tokens)))), mx::contiguous(mx::transpose(*h.shift)));
  const auto step = kernels::solve_positive(damped_hessian, shifted);
  return step ? *step : mx::zeros_like(weight);
}

double mean_of(const std::vector<float>& diagonal, double tokens) {
  return std::accumulate(diagonal.begin(), diagonal.end(), 0.0) / std::max(1.0, tokens) / static_cast<double>(diagonal.size());
}

double inner_product(const mx::array& a, const mx::array& b) {
  const auto rows = on_host(mx::sum(mx::multiply(a, b), 1));
  return std::accumulate(rows.data<float>(), rows.data<float>() + rows.size(), 0.0);
}

codec::Coded coded(const codec::Packed& packed, const codec::Format& format) {
  return {codec::unpack_codes(packed.codes, format.bits), packed.scales, *packed.biases};
}

codec::Packed packed(const codec::Coded& coded, const codec::Format& format) {
  codec::Packed out{codec::pack_codes(coded.codes, format.bits), coded.scales, coded.biases};
  mx::eval(out.codes, out.scales, *out.biases);
  return out;
}

/// One pass of rounding with feedback in the visiting order, codes back in their own.
codec::Coded solve(const mx::array& aim, const mx::array& factor, const std::vector<int>& order, const codec::Coded& start,
                   const codec::Format& format) {
  // R = U · √D: columns divided by their diagonal.
  const auto unit = mx::divide(factor, mx::expand_dims(mx::diagonal(factor), 0));
  std::vector<int> group(order.size()), back(order.size());
  for (std::size_t j = 0; j < order.size(); ++j) group[j] = order[j] / format.group_size, back[order[j]] = static_cast<int>(j);
  const auto codes = codec::round_with_feedback(codec::take_columns(aim, order), unit, start.scales, start.biases, group, format);
  return {codec::take_columns(codes, back), start.scales, start.biases};
}

/// What all rows of a matrix share.
struct Shared {
  const mx::array &hessian, &factor;
  const std::vector<int>& order;
  const std::optional<mx::array>& importance;
};

GptqResult quantize_rows(const mx::array& weight, const mx::array& aim, const Shared& shared, const codec::Format& format,
                         const GptqOptions& options) {
  auto start = Clock::now();
  const auto plain = codec::quantize(weight, format);
  const auto begin = options.range_search ? codec::range_search(aim, format, shared.importance, weight.dtype()).packed : plain;
  GptqResult result{plain};
  result.search_time = seconds_since(start);

  start = Clock::now();
  const auto solved = solve(aim, shared.factor, shared.order, coded(begin, format), format);
  const auto refined = codec::refine(aim, shared.hessian, solved, format, options.sweeps);
  const auto error_of = [&](const codec::Coded& c) { return codec::feedback_error(aim, codec::values_of(c, format), shared.hessian); };
  result.plain_error = error_of(coded(plain, format));
  result.error = error_of(refined);
  result.packed = packed(refined, format);
  for (const auto& other : {begin, plain}) {
    const double error = error_of(coded(other, format));
    if (error < result.error || std::isnan(result.error)) result.error = error, result.packed = other;
  }
  result.solve_time = seconds_since(start);
  return result;
}

GptqResult joined(const std::vector<GptqResult>& parts) {
  if (parts.size() == 1) return parts.front();
  GptqResult all = parts.front();
  std::vector<mx::array> codes, scales, biases;
  all.plain_error = all.error = all.search_time = all.solve_time = 0;
  for (const auto& part : parts) {
    codes.push_back(part.packed.codes), scales.push_back(part.packed.scales), biases.push_back(*part.packed.biases);
    all.plain_error += part.plain_error, all.error += part.error;
    all.search_time += part.search_time, all.solve_time += part.solve_time;
  }
  all.packed = {mx::concatenate(codes, 0), mx::concatenate(scales, 0), mx::concatenate(biases, 0)};
  mx::eval(all.packed.codes, all.packed.scales, *all.packed.biases);
  return all;
}

}  // namespace

GptqResult gptq(const std::string& path, const mx::array& weight, const calibration::Hessian& h, const codec::Format& format,
                const GptqOptions& options) {
  const auto w = mx::astype(weight, mx::float32);
  if (!all_finite(w)) fail("quantize", "{}: holds weights that are NaN or infinite; get the model again or mend that tensor", path);
  if (!all_finite(h.moment))
    fail("quantize",
         "{}: its inputs became NaN or infinite on the calibration data; make the model float32 first (lquant convert --dtype float32) or use other "
         "data",
         path);
  auto moments = diagonal_of(h.moment);
  const double mean = mean_of(moments, h.tokens);

  auto start = Clock::now();
  const auto order = visiting_order(options.act_order, moments, format.group_size);
  const auto indices = as_indices(order);
  double damp = options.damp;
  auto hessian = damped(h.moment, h.tokens, damp, mean);
  hessian.eval();
  const auto factor_of = [&] {
    return kernels::upper_factor(options.act_order == ActOrder::off ? hessian : mx::take(mx::take(hessian, indices, 0), indices, 1));
  };
  auto factor = factor_of();
  // At 1000 times its mean the diagonal outweighs any rounding error of the sums.
  while (!factor && damp < 1e3) {
    damp = std::max(10 * damp, 1e-6);
    hessian = damped(h.moment, h.tokens, damp, mean);
    factor = factor_of();
  }
  if (!factor) fail("quantize", "{}: the second moments of its inputs cannot be factored; use other calibration data", path);
  const auto aim = options.correction > 0 && h.shift
                       ? mx::add(w, mx::multiply(correction_step(w, h, hessian), mx::array(static_cast<float>(options.correction))))
                       : w;
  mx::eval(aim);
  std::optional<mx::array> importance;
  if (mean > 0) importance = mx::array(moments.data(), {static_cast<int>(moments.size())}, mx::float32);
  const double factor_time = seconds_since(start);

  // Rows know nothing of each other: a head of a quarter million rows is worked through in parts.
  const int rows = weight.shape(0), part = std::max(1, kPartWeights / weight.shape(1));
  std::vector<GptqResult> parts;
  for (int first = 0; first < rows; first += part) {
    const auto cut = [&](const mx::array& x) { return mx::contiguous(mx::slice(x, {first, 0}, {std::min(rows, first + part), x.shape(1)})); };
    parts.push_back(rows <= part ? quantize_rows(weight, aim, {hessian, *factor, order, importance}, format, options)
                                 : quantize_rows(cut(weight), cut(aim), {hessian, *factor, order, importance}, format, options));
  }
  auto result = joined(parts);
  result.damp = damp;
  result.factor_time = factor_time;
  return result;
}

double correction_share(const mx::array& weight, const calibration::Hessian& train, const calibration::Hessian& held, double damp) {
  if (!train.shift || !held.shift || train.tokens <= 0 || held.tokens <= 0) return 0;
  const auto w = mx::astype(weight, mx::float32);
  const auto step = correction_step(w, train, damped(train.moment, train.tokens, damp, mean_of(diagonal_of(train.moment), train.tokens)));
  // ‖w·(x − x̂) − c·step·x̂‖² over the held-out tokens is a parabola in c.
  const double slope = inner_product(product(w, mx::contiguous(mx::transpose(*held.shift))), step) / held.tokens;
  const double bend = inner_product(product(step, held.moment), step) / held.tokens;
  return bend > 0 ? std::clamp(slope / bend, 0.0, 1.0) : 0;
}

double output_error(const mx::array& weight, const codec::Packed& packed, const codec::Format& format, const calibration::Hessian& h) {
  const auto w = mx::astype(weight, mx::float32), quantized = codec::dequantize(packed, format, mx::float32);
  double error = codec::feedback_error(w, quantized, h.moment);
  if (h.shift) error += 2 * inner_product(product(w, mx::contiguous(mx::transpose(*h.shift))), mx::subtract(w, quantized));
  return error / std::max(1.0, h.tokens);
}

}  // namespace lquant::quantize
