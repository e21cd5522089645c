// A linear's output error is a quadratic form of its weight's error with the inputs' second moments H, so the grid never runs the model:
// scaled weights are quantized, their errors brought back to the unscaled space, and weighed with H.
#include "quantize/awq.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "base/error.h"
#include "codec/feedback.h"
#include "codec/quantize.h"
#include "codec/range_search.h"
#include "model/fold.h"

namespace lquant::quantize {
namespace {

// Rows of a weight that judge a candidate. Errors of rows differ by chance more than by kind: twice as many choose the same r (docs/methods/awq.md).
constexpr int kJudges = 128;
// A channel that is always 0 would get a scale of 0; mlx_lm has the same floor.
constexpr float kFloor = 1e-4f;

mx::array scalar(double x) { return mx::array(static_cast<float>(x)); }

/// One matrix [N, K] that reads an edge; N is thinned out.
struct Matrix {
  mx::array weight;
  codec::Format format;
  const calibration::Hessian* hessian;
  mx::array mean_square;  // of each input, f32 [K]
};

mx::array thinned(const mx::array& weight) {
  const int rows = weight.shape(0), step = std::max(1, rows / kJudges);
  return mx::contiguous(mx::slice(weight, {0, 0}, weight.shape(), {step, 1}));
}

Matrix matrix_of(const mx::array& weight, const codec::Format& format, const calibration::Hessian& hessian) {
  Matrix m{thinned(weight), format, &hessian, calibration::mean_squares(hessian)};
  mx::eval(m.weight, m.mean_square);
  return m;
}

/// f32 [K] of the consumers' columns → [channels] of the edge: the mean over the query heads that read one value head.
mx::array by_channel(const model::Edge& edge, const mx::array& columns) {
  if (edge.repeats == 1) return columns;
  if (edge.tiled) return mx::mean(mx::reshape(columns, {edge.repeats, edge.channels}), 0);
  const auto heads = mx::reshape(columns, {edge.channels / edge.head_dim, edge.repeats, edge.head_dim});
  return mx::reshape(mx::mean(heads, 1), {edge.channels});
}

/// Magnitudes of a channel's weights relative to the largest of their groups, mean over all rows.
mx::array relative_magnitude(const model::Edge& edge, const std::vector<Matrix>& matrices) {
  mx::array sum = mx::zeros({edge.channels}, mx::float32);
  double rows = 0;
  for (const auto& m : matrices) {
    const int n = m.weight.shape(0), k = m.weight.shape(1), group = m.format.group_size;
    const auto magnitude = mx::abs(mx::reshape(m.weight, {n, k / group, group}));
    const auto relative = mx::divide(magnitude, mx::maximum(mx::max(magnitude, -1, true), scalar(1e-30)));
    sum = mx::add(sum, by_channel(edge, mx::sum(mx::reshape(relative, {n, k}), 0)));
    rows += n;
  }
  return mx::divide(sum, scalar(std::max(1.0, rows)));
}

/// Centred between the largest and the smallest.
mx::array normalised(const mx::array& scales) {
  const auto s = mx::maximum(scales, scalar(kFloor));
  return mx::divide(s, mx::sqrt(mx::multiply(mx::max(s), mx::min(s))));
}

double error_of(const model::Edge& edge, const std::vector<Matrix>& matrices, const mx::array& scales, const AwqOptions& options, mx::Dtype dtype) {
  const auto columns = model::column_scales(edge, scales);
  double error = 0;
  for (const auto& m : matrices) {
    const auto scaled = mx::multiply(m.weight, columns);
    codec::Packed packed = options.clip && m.format.mode == codec::Mode::affine
                               ? codec::range_search(scaled, m.format, mx::divide(m.mean_square, mx::square(columns)), dtype).packed
                               : codec::quantize(mx::astype(scaled, dtype), m.format);
    const auto back = mx::divide(codec::dequantize(packed, m.format, mx::float32), columns);
    error += codec::feedback_error(m.weight, back, m.hessian->moment);
  }
  return error;
}

/// The search with one scale a channel.
ScaleSearch search_one(const model::Edge& edge, const std::vector<Matrix>& matrices, const AwqOptions& options, mx::Dtype dtype) {
  // The readers see the same activations; of experts, the one with most tokens (or the router, which sees all) knows them best.
  const auto& best_seen =
      *std::max_element(matrices.begin(), matrices.end(), [](const Matrix& a, const Matrix& b) { return a.hessian->tokens < b.hessian->tokens; });
  const auto x = mx::sqrt(by_channel(edge, best_seen.mean_square)), w = relative_magnitude(edge, matrices);
  ScaleSearch found;
  found.unscaled = error_of(edge, matrices, mx::ones({edge.channels}, mx::float32), options, dtype);
  const auto consider = [&](const mx::array& scales, double r, bool duo) {
    auto normal = normalised(scales);
    normal.eval();
    const double error = error_of(edge, matrices, normal, options, dtype);
    if (error < found.unscaled) found.candidates.push_back({normal, r, duo, error});
  };
  const auto powered = [&](double r) { return mx::power(mx::maximum(x, scalar(kFloor)), scalar(r)); };
  for (int i = 1; i < options.grid; ++i) consider(powered(double(i) / options.grid), double(i) / options.grid, false);
  if (options.duo) {
    for (int i = 0; i < options.grid; ++i) {
      const double r = double(i) / options.grid;
      consider(mx::divide(powered(r), mx::power(mx::maximum(w, scalar(kFloor)), scalar(1 - r))), r, true);
    }
  }
  std::stable_sort(found.candidates.begin(), found.candidates.end(), [](const auto& a, const auto& b) { return a.error < b.error; });
  if (static_cast<int>(found.candidates.size()) > options.shortlist)
    found.candidates.erase(found.candidates.begin() + options.shortlist, found.candidates.end());
  return found;
}

mx::array expert(const mx::array& stacked, int e) {
  return mx::reshape(mx::slice(stacked, {e, 0, 0}, {e + 1, stacked.shape(1), stacked.shape(2)}), {stacked.shape(1), stacked.shape(2)});
}

bool fits(const model::Edge& edge, const Reader& reader) {
  const auto& w = reader.weight;
  const bool stacked = w.ndim() == 3;
  const int columns = edge.channels * edge.repeats;
  if ((w.ndim() != 2 && !stacked) || w.dtype() != mx::float32 || w.shape(-1) != columns) return false;
  if (edge.experts > 0 && (!stacked || w.shape(0) != edge.experts)) return false;
  if (reader.hessians.size() != (stacked ? static_cast<std::size_t>(w.shape(0)) : 1)) return false;
  return std::all_of(reader.hessians.begin(), reader.hessians.end(), [&](const auto& h) { return h.moment.shape() == mx::Shape{columns, columns}; });
}

}  // namespace

ScaleSearch search_scales(const model::Edge& edge, const std::vector<Reader>& readers, const AwqOptions& options, mx::Dtype scale_dtype) {
  if (readers.empty()) throw std::invalid_argument("[quantize] search_scales: nobody reads the edge at " + edge.producer);
  for (const auto& reader : readers) {
    if (!fits(edge, reader)) throw std::invalid_argument("[quantize] search_scales: a reader does not fit the edge at " + edge.producer);
    for (const auto& h : reader.hessians)
      if (!mx::all(mx::isfinite(h.moment)).item<bool>())
        fail("quantize",
             "{}: what it gives became NaN or infinite on the calibration data; make the model float32 first (lquant convert --dtype float32) or use "
             "other data",
             edge.producer);
  }
  const auto matrices_of = [&](std::optional<int> only) {
    std::vector<Matrix> all;
    for (const auto& reader : readers) {
      if (reader.weight.ndim() == 2) {
        all.push_back(matrix_of(reader.weight, reader.format, reader.hessians.at(0)));
        continue;
      }
      for (int e = 0; e < reader.weight.shape(0); ++e)
        if (!only || *only == e) all.push_back(matrix_of(expert(reader.weight, e), reader.format, reader.hessians.at(e)));
    }
    return all;
  };
  if (edge.experts == 0) return search_one(edge, matrices_of(std::nullopt), options, scale_dtype);

  // Experts have scales of their own: each takes its best.
  ScaleSearch all;
  ScaleCandidate joined{mx::array(0)};
  std::vector<mx::array> scales;
  for (int e = 0; e < edge.experts; ++e) {
    const auto one = search_one(edge, matrices_of(e), options, scale_dtype);
    all.unscaled += one.unscaled;
    if (one.candidates.empty()) {
      scales.push_back(mx::ones({edge.channels}, mx::float32));
      joined.error += one.unscaled;
      continue;
    }
    const auto& best = one.candidates.front();
    if (scales.empty()) joined.r = best.r, joined.duo = best.duo;
    scales.push_back(best.scales);
    joined.error += best.error;
  }
  joined.scales = mx::stack(scales);
  joined.scales.eval();
  if (joined.error < all.unscaled) all.candidates.push_back(joined);
  return all;
}

}  // namespace lquant::quantize
