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

std::vector<int> inverse(const std::vector<int>& order) {
  std::vector<int> back(order.size());
  for (std::size_t j = 0; j < order.size(); ++j) back[order[j]] = static_cast<int>(j);
  return back;
}

/// w · S · (H + λI)⁻¹: the whole step of the correction.
mx::array correction_step(const mx::array& weight, const FactoredHessian& h) {
  const auto shifted = product(mx::multiply(weight, mx::array(static_cast<float>(1 / std::max(1.0, h.source.tokens)))),
                               mx::contiguous(mx::transpose(*h.source.shift)));
  return codec::take_columns(h.factor.solve(codec::take_columns(shifted, h.order)), inverse(h.order));
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
  std::vector<int> group(order.size());
  for (std::size_t j = 0; j < order.size(); ++j) group[j] = order[j] / format.group_size;
  const auto codes = codec::round_with_feedback(codec::take_columns(aim, order), unit, start.scales, start.biases, group, format);
  return {codec::take_columns(codes, inverse(order)), start.scales, start.biases};
}

GptqResult quantize_rows(const mx::array& weight, const mx::array& aim, const FactoredHessian& h, const codec::Format& format,
                         const GptqOptions& options) {
  auto start = Clock::now();
  const auto plain = codec::quantize(weight, format);
  const auto begin = options.range_search ? codec::range_search(aim, format, h.importance, weight.dtype()).packed : plain;
  GptqResult result{plain};
  result.search_time = seconds_since(start);

  start = Clock::now();
  const auto solved = solve(aim, h.factor.upper(), h.order, coded(begin, format), format);
  const auto refined = codec::refine(aim, h.damped, solved, format, options.sweeps);
  const auto value = [&](const codec::Coded& c) { return codec::values_of(c, format); };
  const auto errors = codec::feedback_errors(aim, {value(refined), value(coded(begin, format)), value(coded(plain, format))}, h.damped);
  result.plain_error = errors[2];
  result.error = errors[0];
  result.packed = packed(refined, format);
  for (const auto& [other, error] : {std::pair(begin, errors[1]), std::pair(plain, errors[2])})
    if (error < result.error || std::isnan(result.error)) result.error = error, result.packed = other;
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

double mean_of(const std::vector<float>& diagonal, double tokens) {
  return std::accumulate(diagonal.begin(), diagonal.end(), 0.0) / std::max(1.0, tokens) / static_cast<double>(diagonal.size());
}

/// The diagonal grows until the matrix factors: damp is what it took.
kernels::PositiveSolver factored(const std::string& path, const calibration::Hessian& h, const std::vector<int>& order, double mean, double& damp,
                                 mx::array& matrix) {
  const auto indices = as_indices(order);
  const bool natural = std::is_sorted(order.begin(), order.end());
  while (true) {
    matrix = damped(h.moment, h.tokens, damp, mean);
    matrix.eval();
    if (auto upper = kernels::upper_factor(natural ? matrix : mx::take(mx::take(matrix, indices, 0), indices, 1)))
      return kernels::PositiveSolver(*upper);
    // At 1000 times its mean the diagonal outweighs any rounding error of the sums.
    if (damp >= 1e3) fail("quantize", "{}: the second moments of its inputs cannot be factored; use other calibration data", path);
    damp = std::max(10 * damp, 1e-6);
  }
}

void check_moments(const std::string& path, const mx::array& moment) {
  if (!all_finite(moment))
    fail("quantize",
         "{}: its inputs became NaN or infinite on the calibration data; make the model float32 first (lquant convert --dtype float32) or use other "
         "data",
         path);
}

std::optional<mx::array> importance_of(const std::vector<float>& moments) {
  if (std::all_of(moments.begin(), moments.end(), [](float m) { return m == 0; })) return std::nullopt;
  return mx::array(moments.data(), {static_cast<int>(moments.size())}, mx::float32);
}

}  // namespace

FactoredHessian::FactoredHessian(const std::string& path, const calibration::Hessian& h, int group_size, const GptqOptions& options)
    : FactoredHessian(path, h, (check_moments(path, h.moment), diagonal_of(h.moment)), group_size, options) {}

FactoredHessian::FactoredHessian(const std::string& path, const calibration::Hessian& h, const std::vector<float>& diagonal, int group_size,
                                 const GptqOptions& options)
    : source(h),
      damp(options.damp),
      damped(h.moment),
      order(visiting_order(options.act_order, diagonal, group_size)),
      importance(importance_of(diagonal)),
      factor(factored(path, h, order, mean_of(diagonal, h.tokens), damp, damped)) {}

GptqResult gptq(const std::string& path, const mx::array& weight, const FactoredHessian& h, const codec::Format& format, const GptqOptions& options) {
  const auto w = mx::astype(weight, mx::float32);
  if (!all_finite(w)) fail("quantize", "{}: holds weights that are NaN or infinite; get the model again or mend that tensor", path);
  const auto start = Clock::now();
  const auto aim = options.correction > 0 && h.source.shift
                       ? mx::add(w, mx::multiply(correction_step(w, h), mx::array(static_cast<float>(options.correction))))
                       : w;
  mx::eval(aim);
  const double factor_time = seconds_since(start);

  // Rows know nothing of each other: a head of a quarter million rows is worked through in parts.
  const int rows = weight.shape(0), part = std::max(1, kPartWeights / weight.shape(1));
  std::vector<GptqResult> parts;
  for (int first = 0; first < rows; first += part) {
    const auto cut = [&](const mx::array& x) { return mx::contiguous(mx::slice(x, {first, 0}, {std::min(rows, first + part), x.shape(1)})); };
    parts.push_back(rows <= part ? quantize_rows(weight, aim, h, format, options) : quantize_rows(cut(weight), cut(aim), h, format, options));
  }
  auto result = joined(parts);
  result.damp = h.damp;
  result.factor_time = factor_time;
  return result;
}

double correction_share(const mx::array& weight, const FactoredHessian& train, const calibration::Hessian& held) {
  if (!train.source.shift || !held.shift || train.source.tokens <= 0 || held.tokens <= 0) return 0;
  const auto w = mx::astype(weight, mx::float32);
  const auto step = correction_step(w, train);
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
