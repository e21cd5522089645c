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
#include "kernels/primitive.h"
#include "model/fold.h"

namespace lquant::quantize {
namespace {

// Rows of a weight that judge a candidate. Errors of rows differ by chance more than by kind: twice as many choose the same r (docs/methods/awq.md).
constexpr int kJudges = 128;
// Weights that candidates are tried on at once on a GPU, where launches cost more than the work: 32 MB in f32, about five times as much on the way.
// A CPU gains nothing by it.
constexpr std::size_t kGridWeights = 1 << 23;
// A channel that is always 0 would get a scale of 0; mlx_lm has the same floor.
constexpr float kFloor = 1e-4f;

mx::array scalar(double x) { return mx::array(static_cast<float>(x)); }

/// One matrix [N, K] that reads an edge; N is thinned out.
struct Matrix {
  mx::array weight;
  codec::Format format;
};

/// A matrix of a reader on its way through the search.
struct Judge {
  Matrix matrix;
  double tokens;
  std::vector<double> errors = {};
};

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

/// The scales of the grid. `mean_square` f32 [K] is of the activations that all readers see.
std::vector<ScaleCandidate> grid_of(const model::Edge& edge, const std::vector<Matrix>& matrices, const mx::array& mean_square,
                                    const AwqOptions& options) {
  const auto x = mx::sqrt(by_channel(edge, mean_square)), w = relative_magnitude(edge, matrices);
  std::vector<ScaleCandidate> all;
  const auto consider = [&](const mx::array& scales, double r, bool duo) {
    all.push_back({normalised(scales), r, duo, 0});
    all.back().scales.eval();
  };
  const auto powered = [&](double r) { return mx::power(mx::maximum(x, scalar(kFloor)), scalar(r)); };
  for (int i = 1; i < options.grid; ++i) consider(powered(double(i) / options.grid), double(i) / options.grid, false);
  if (options.duo) {
    for (int i = 0; i < options.grid; ++i) {
      const double r = double(i) / options.grid;
      consider(mx::divide(powered(r), mx::power(mx::maximum(w, scalar(kFloor)), scalar(1 - r))), r, true);
    }
  }
  return all;
}

/// The errors that the candidates leave of one matrix; the last is that of none. Several candidates are a stack of scaled matrices.
std::vector<double> errors_of(const model::Edge& edge, const Matrix& m, const calibration::Hessian& h, const std::vector<ScaleCandidate>& candidates,
                              const AwqOptions& options, mx::Dtype dtype) {
  std::vector<mx::array> all;
  for (const auto& candidate : candidates) all.push_back(model::column_scales(edge, candidate.scales));
  all.push_back(mx::ones({m.weight.shape(1)}, mx::float32));
  const bool searched = options.clip && m.format.mode == codec::Mode::affine;
  const auto squares = calibration::mean_squares(h);
  const std::size_t at_once = kernels::cpu_kernels() ? 1 : std::max<std::size_t>(1, kGridWeights / m.weight.size());
  std::vector<double> errors;
  for (std::size_t first = 0; first < all.size(); first += at_once) {
    const std::vector<mx::array> some(all.begin() + first, all.begin() + std::min(all.size(), first + at_once));
    const auto columns = mx::stack(some), wide = mx::expand_dims(columns, 1), scaled = mx::multiply(m.weight, wide);
    const auto packed = searched ? codec::range_search(scaled, m.format, mx::divide(squares, mx::square(columns)), dtype).packed
                                 : codec::quantize(mx::astype(scaled, dtype), m.format);
    const auto back = mx::divide(codec::dequantize(packed, m.format, mx::float32), wide);
    std::vector<mx::array> each;
    for (int c = 0; c < back.shape(0); ++c)
      each.push_back(mx::reshape(mx::slice(back, {c, 0, 0}, {c + 1, back.shape(1), back.shape(2)}), m.weight.shape()));
    const auto found = codec::feedback_errors(m.weight, each, h.moment);
    errors.insert(errors.end(), found.begin(), found.end());
  }
  return errors;
}

/// What the candidates are worth by the errors of all matrices.
ScaleSearch choice_of(std::vector<ScaleCandidate> candidates, const std::vector<std::vector<double>>& errors, const AwqOptions& options) {
  ScaleSearch found;
  for (const auto& of_matrix : errors) {
    found.unscaled += of_matrix.back();
    for (std::size_t c = 0; c < candidates.size(); ++c) candidates[c].error += of_matrix[c];
  }
  for (const auto& candidate : candidates)
    if (candidate.error < found.unscaled) found.candidates.push_back(candidate);
  std::stable_sort(found.candidates.begin(), found.candidates.end(), [](const auto& a, const auto& b) { return a.error < b.error; });
  if (static_cast<int>(found.candidates.size()) > options.shortlist)
    found.candidates.erase(found.candidates.begin() + options.shortlist, found.candidates.end());
  return found;
}

mx::array expert(const mx::array& stacked, int e) {
  return mx::reshape(mx::slice(stacked, {e, 0, 0}, {e + 1, stacked.shape(1), stacked.shape(2)}), {stacked.shape(1), stacked.shape(2)});
}

void check(const model::Edge& edge, const calibration::Hessian& h) {
  const int columns = edge.channels * edge.repeats;
  if (h.moment.shape() != mx::Shape{columns, columns})
    throw std::invalid_argument("[quantize] search_scales: moments do not fit the edge at " + edge.producer);
  if (!mx::all(mx::isfinite(h.moment)).item<bool>())
    fail("quantize",
         "{}: what it gives became NaN or infinite on the calibration data; make the model float32 first (lquant convert --dtype float32) or use "
         "other data",
         edge.producer);
}

bool fits(const model::Edge& edge, const Reader& reader) {
  const auto& w = reader.weight;
  const bool stacked = w.ndim() == 3;
  const int columns = edge.channels * edge.repeats;
  if ((w.ndim() != 2 && !stacked) || w.dtype() != mx::float32 || w.shape(-1) != columns) return false;
  if (edge.experts > 0 && (!stacked || w.shape(0) != edge.experts)) return false;
  return reader.hessians.tokens().size() == (stacked ? static_cast<std::size_t>(w.shape(0)) : 1);
}

std::vector<Judge> judges_of(const Reader& reader) {
  const auto rows = judging_rows(reader.weight);
  const auto& tokens = reader.hessians.tokens();
  if (rows.ndim() == 2) return {{{rows, reader.format}, tokens[0]}};
  std::vector<Judge> all;
  for (int e = 0; e < rows.shape(0); ++e) {
    all.push_back({{mx::contiguous(expert(rows, e)), reader.format}, tokens[e]});
    all.back().matrix.weight.eval();
  }
  return all;
}

/// Experts have scales of their own: each takes its best.
ScaleSearch joined(const model::Edge& edge, const std::vector<ScaleSearch>& found) {
  ScaleSearch all;
  ScaleCandidate joined{mx::array(0)};
  std::vector<mx::array> scales;
  bool any = false;
  for (const auto& one : found) {
    all.unscaled += one.unscaled;
    if (one.candidates.empty()) {
      scales.push_back(mx::ones({edge.channels}, mx::float32));
      joined.error += one.unscaled;
      continue;
    }
    const auto& best = one.candidates.front();
    if (!std::exchange(any, true)) joined.r = best.r, joined.duo = best.duo;
    scales.push_back(best.scales);
    joined.error += best.error;
  }
  joined.scales = mx::stack(scales);
  joined.scales.eval();
  if (joined.error < all.unscaled) all.candidates.push_back(joined);
  return all;
}

}  // namespace

Hessians::Hessians(const std::vector<calibration::Hessian>& all)
    : Hessians({}, [all](const Visit& visit) {
        for (std::size_t e = 0; e < all.size(); ++e) visit(static_cast<int>(e), all[e]);
      }) {
  for (const auto& h : all) tokens_.push_back(h.tokens);
}

mx::array judging_rows(const mx::array& w) {
  const int rows = w.shape(-2), step = std::max(1, rows / kJudges);
  auto strides = mx::Shape(w.ndim(), 1);
  strides[w.ndim() - 2] = step;
  auto some = mx::contiguous(mx::slice(w, mx::Shape(w.ndim(), 0), w.shape(), strides));
  some.eval();
  return some;
}

ScaleSearch search_scales(const model::Edge& edge, const std::vector<Reader>& readers, const AwqOptions& options, mx::Dtype scale_dtype) {
  if (readers.empty()) throw std::invalid_argument("[quantize] search_scales: nobody reads the edge at " + edge.producer);
  std::vector<std::vector<Judge>> judges;
  for (const auto& reader : readers) {
    if (!fits(edge, reader)) throw std::invalid_argument("[quantize] search_scales: a reader does not fit the edge at " + edge.producer);
    judges.push_back(judges_of(reader));
  }
  // One set of scales for all matrices, or one for each expert.
  struct Set {
    std::vector<Judge*> judges = {};
    std::size_t reader = 0;  // that has the best seen of them
    int matrix = 0;
    std::vector<ScaleCandidate> candidates = {};
  };
  std::vector<Set> sets(std::max(1, edge.experts));
  const auto set_of = [&](int e) -> Set& { return sets[edge.experts > 0 ? e : 0]; };
  for (std::size_t r = 0; r < readers.size(); ++r)
    for (int e = 0; e < static_cast<int>(judges[r].size()); ++e) {
      auto& set = set_of(e);
      // The readers see the same activations; of experts, the one with most tokens (or the router, which sees all) knows them best.
      if (set.judges.empty() || judges[set.reader][set.matrix].tokens < judges[r][e].tokens) set.reader = r, set.matrix = e;
      set.judges.push_back(&judges[r][e]);
    }
  const auto make_grid = [&](Set& set, const calibration::Hessian& h) {
    std::vector<Matrix> matrices;
    for (const auto* judge : set.judges) matrices.push_back(judge->matrix);
    set.candidates = grid_of(edge, matrices, calibration::mean_squares(h), options);
  };
  for (std::size_t r = 0; r < readers.size(); ++r) {
    const auto waits = [&](const Set& set) { return set.reader == r && set.judges.size() > 1; };
    if (std::none_of(sets.begin(), sets.end(), waits)) continue;
    readers[r].hessians.each([&](int e, const calibration::Hessian& h) {
      check(edge, h);
      if (auto& set = set_of(e); waits(set) && set.matrix == e) make_grid(set, h);
    });
  }
  for (std::size_t r = 0; r < readers.size(); ++r) {
    std::vector<std::size_t> together;
    for (std::size_t q = 0; q < readers.size(); ++q)
      if (readers[q].hessians.same(readers[r].hessians)) together.push_back(q);
    if (together.front() < r) continue;
    readers[r].hessians.each([&](int e, const calibration::Hessian& h) {
      check(edge, h);
      auto& set = set_of(e);
      if (set.judges.size() == 1) make_grid(set, h);
      for (auto q : together) judges[q][e].errors = errors_of(edge, judges[q][e].matrix, h, set.candidates, options, scale_dtype);
    });
  }
  std::vector<ScaleSearch> found;
  for (auto& set : sets) {
    std::vector<std::vector<double>> errors;
    for (const auto* judge : set.judges) errors.push_back(judge->errors);
    found.push_back(choice_of(std::move(set.candidates), errors, options));
  }
  return edge.experts == 0 ? found.front() : joined(edge, found);
}

}  // namespace lquant::quantize
