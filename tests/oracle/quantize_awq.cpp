#include "oracle/quantize_awq.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "codec/quantize.h"
#include "codec/range_search.h"

namespace lquant::oracle {
namespace mx = mlx::core;

namespace {

std::vector<float> values(const mx::array& x) {
  auto host = mx::contiguous(mx::astype(x, mx::float32));
  host.eval();
  return {host.data<float>(), host.data<float>() + host.size()};
}

/// The channel that each column reads: value heads one after another, each followed by its repetitions.
std::vector<int> channels_of(const model::Edge& edge) {
  std::vector<int> channel;
  for (int head = 0; head < edge.channels / edge.head_dim; ++head)
    for (int repeat = 0; repeat < edge.repeats; ++repeat)
      for (int d = 0; d < edge.head_dim; ++d) channel.push_back(head * edge.head_dim + d);
  return channel;
}

/// That of a plain linear.
calibration::Hessian hessian_of(const quantize::Reader& reader) {
  std::vector<calibration::Hessian> all;
  reader.hessians.each([&](int, const calibration::Hessian& h) { all.push_back(h); });
  return all.at(0);
}

}  // namespace

std::vector<int> judging_rows(int rows) {
  std::vector<int> chosen;
  for (int i = 0; i < rows; i += std::max(1, rows / 128)) chosen.push_back(i);
  return chosen;
}

JudgedError judged_error(const model::Edge& edge, const std::vector<quantize::Reader>& readers, const std::vector<float>& scales, bool clip,
                         mx::Dtype scale_dtype) {
  const auto channel = channels_of(edge);
  const int k = static_cast<int>(channel.size());
  const double u = std::ldexp(1.0, -24);
  JudgedError sum;
  for (const auto& reader : readers) {
    const auto hessian = hessian_of(reader);
    const auto w = values(reader.weight), h = values(hessian.moment);
    const auto rows = judging_rows(reader.weight.shape(0));
    const int n = static_cast<int>(rows.size());
    const float share = static_cast<float>(1 / std::max(1.0, hessian.tokens));
    std::vector<float> scaled, importance;
    for (int row : rows)
      for (int j = 0; j < k; ++j) scaled.push_back(w[row * k + j] * scales[channel[j]]);
    for (int j = 0; j < k; ++j) importance.push_back(h[j * k + j] * share / (scales[channel[j]] * scales[channel[j]]));
    const mx::array matrix(scaled.data(), {n, k}, mx::float32);
    const auto packed = clip ? codec::range_search(matrix, reader.format, mx::array(importance.data(), {k}, mx::float32), scale_dtype).packed
                             : codec::quantize(mx::astype(matrix, scale_dtype), reader.format);
    const auto q = values(codec::dequantize(packed, reader.format, mx::float32));
    for (int i = 0; i < n; ++i) {
      // The quotient and the difference are each rounded to f32, and K products are summed in it, in whatever order.
      std::vector<double> e(k), off(k);
      for (int j = 0; j < k; ++j) {
        const double back = double(q[i * k + j]) / scales[channel[j]];
        e[j] = w[rows[i] * k + j] - back;
        off[j] = u * (std::abs(back) + 2 * std::abs(e[j]));
      }
      for (int a = 0; a < k; ++a)
        for (int b = 0; b < k; ++b) {
          const double moment = h[a * k + b];
          sum.error += e[a] * moment * e[b];
          sum.rounding += std::abs(moment) * ((k + 3) * u * std::abs(e[a] * e[b]) + 2 * off[a] * (std::abs(e[b]) + off[b]));
        }
    }
  }
  return sum;
}

std::vector<double> awq_scales(const model::Edge& edge, const std::vector<quantize::Reader>& readers, double r, bool duo) {
  const auto channel = channels_of(edge);
  const int k = static_cast<int>(channel.size());
  // All readers see one input; the one that has seen most tokens knows it best.
  auto seen = hessian_of(readers.front());
  for (const auto& reader : readers)
    if (const auto other = hessian_of(reader); other.tokens > seen.tokens) seen = other;
  const auto h = values(seen.moment);
  std::vector<double> square(edge.channels), weight(edge.channels);
  for (int j = 0; j < k; ++j) square[channel[j]] += h[j * k + j] / std::max(1.0, seen.tokens) / edge.repeats;
  double rows = 0;
  for (const auto& reader : readers) {
    const auto w = values(reader.weight);
    for (int i : judging_rows(reader.weight.shape(0))) {
      for (int j = 0; j < k; ++j) {
        const int group = j / reader.format.group_size * reader.format.group_size;
        double largest = 0;
        for (int c = group; c < group + reader.format.group_size; ++c) largest = std::max(largest, double(std::abs(w[i * k + c])));
        if (largest > 0) weight[channel[j]] += std::abs(w[i * k + j]) / largest / edge.repeats;
      }
      ++rows;
    }
  }
  // Nothing counts for less than 1e-4.
  const auto floored = [](double x) { return std::max(x, 1e-4); };
  std::vector<double> scales(edge.channels);
  for (int c = 0; c < edge.channels; ++c)
    scales[c] = floored(std::pow(floored(std::sqrt(square[c])), r) / (duo ? std::pow(floored(weight[c] / rows), 1 - r) : 1));
  const double centre = std::sqrt(*std::max_element(scales.begin(), scales.end()) * *std::min_element(scales.begin(), scales.end()));
  for (auto& s : scales) s /= centre;
  return scales;
}

}  // namespace lquant::oracle
