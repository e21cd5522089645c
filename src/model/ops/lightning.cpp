// Chunk by chunk: within a chunk as attention without a softmax, between chunks by one matrix a head. A text that begins in a chunk reads nothing of
// what stands before it, by masks: a decay to 0 would be a logarithm of 0 for the gradients.
#include "model/ops/lightning.h"

#include <mlx/mlx.h>

#include <cmath>
#include <stdexcept>

#include "kernels/gated.h"
#include "kernels/linear.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "model/norm.h"
#include "model/ops/parts.h"
#include "model/segments.h"

namespace lquant::model {
namespace {

// Products within a chunk cost as many operations a token as those with the matrix when a chunk is as long as a head is wide, which is 64 to 128.
constexpr int kChunk = 64;

/// Entries first … last − 1 of an axis.
mx::array cut(const mx::array& x, int axis, int first, int last) {
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start[axis] = first;
  stop[axis] = last;
  return mx::slice(x, start, stop);
}

/// What a head has seen of a text, λ^(t−s) k_s vᵀ_s summed, [B, H, D, D]; none before the first token.
using State = std::optional<mx::array>;

/// q, k, v [B, H, T, D] in f32 → y. `begins` int32 [B, T]: the place of the first token of each token's text, negative when it stands before the row;
/// none: one text.
mx::array decayed(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decays, const std::optional<mx::array>& begins,
                  State& state) {
  const int length = q.shape(2);
  const auto decay = mx::reshape(log_decays, {1, -1, 1, 1});
  const auto numbers = [](int from, int to, const mx::Shape& shape) { return mx::reshape(mx::arange(float(from), float(to), mx::float32), shape); };
  const auto factor = [&](const mx::array& distance) { return mx::exp(mx::multiply(decay, distance)); };
  std::vector<mx::array> all;
  for (int first = 0; first < length; first += kChunk) {
    const int last = std::min(first + kChunk, length), n = last - first;
    const auto part = [&](const mx::array& x) { return cut(x, 2, first, last); };
    const auto own_q = part(q), own_k = part(k), own_v = part(v);
    const auto rows = numbers(0, n, {n, 1}), columns = numbers(0, n, {1, n});
    auto weights = mx::multiply(factor(mx::maximum(mx::subtract(rows, columns), mx::array(0.0f))), f32(mx::greater_equal(rows, columns)));
    auto left = factor(mx::subtract(mx::array(float(n - 1)), rows));  // what of a token is left at the chunk's end
    std::optional<mx::array> goes_on;                                 // [B, 1, n, 1]: the token's text began before the chunk
    if (begins) {
      const auto of_row = mx::expand_dims(cut(*begins, 1, first, last), {1, 3});  // [B, 1, n, 1]
      const auto of_column = mx::swapaxes(of_row, 2, 3);
      weights = mx::multiply(weights, f32(mx::equal(of_row, of_column)));
      left = mx::multiply(left, f32(mx::equal(of_row, cut(of_row, 2, n - 1, n))));
      goes_on = f32(mx::less(of_row, mx::array(first, mx::int32)));
    }
    auto y = mx::matmul(mx::multiply(mx::matmul(own_q, mx::swapaxes(own_k, 2, 3)), weights), own_v);
    if (state) {
      auto reach = factor(mx::add(rows, mx::array(1.0f)));
      if (goes_on) reach = mx::multiply(reach, *goes_on);
      y = mx::add(y, mx::matmul(mx::multiply(own_q, reach), *state));
    }
    all.push_back(y);
    auto next = mx::matmul(mx::swapaxes(mx::multiply(own_k, left), 2, 3), own_v);
    if (state) {
      auto kept = factor(mx::full({1, 1}, float(n)));
      if (goes_on) kept = mx::multiply(kept, cut(*goes_on, 2, n - 1, n));
      next = mx::add(next, mx::multiply(*state, kept));
    }
    state = next;
  }
  return all.size() == 1 ? all[0] : mx::concatenate(all, 2);
}

}  // namespace

std::vector<float> lightning_decays(int heads, double factor) {
  const auto of_power = [](int n) {
    std::vector<double> slopes;
    for (int i = 0; i < n; ++i) slopes.push_back(std::pow(2.0, -std::pow(2.0, 3 - std::log2(n)) * (i + 1)));
    return slopes;
  };
  int power = 1;
  while (2 * power <= heads) power *= 2;
  auto slopes = of_power(power);
  const auto between = of_power(2 * power);
  for (int i = 0; static_cast<int>(slopes.size()) < heads; i += 2) slopes.push_back(between[i]);
  std::vector<float> decays;
  for (const double slope : slopes) decays.push_back(-static_cast<float>(slope) * static_cast<float>(factor));
  return decays;
}

void Lightning::contents(int op, int first_stage, Contents& all) const {
  all.readings.push_back({&input, op, first_stage});
  all.readings.push_back({&gate, op, first_stage});
  all.readings.push_back({&output, op, first_stage + 1});
  for (const auto* own : {&q_norm, &k_norm})
    if (*own) all.norms.push_back(&**own);
  all.norms.push_back(&norm);
}

Flow Lightning::start(const Scope& scope, const mx::array& normed, const mx::array&) const {
  scope.observe(input, normed);
  scope.observe(gate, normed);
  return {{normed}, {}};
}

Flow Lightning::advance(const Scope& scope, int, const Flow& at) const {
  const auto& context = scope.context;
  if (context.cache && context.segments) throw std::invalid_argument("[model] segments and a cache exclude each other");
  if (context.branches) throw std::invalid_argument("[model] a recurrence does not go on from a text computed once");
  const auto& h = at.inputs[0];
  const int batch = h.shape(0), length = h.shape(1);
  std::vector<kernels::LinearWeight> weights;
  for (const auto& part : input.parts) weights.push_back(scope.weight(input, part));
  weights.push_back(scope.weight(gate));
  const auto products = kernels::linears(h, weights);
  const auto by_head = [&](const mx::array& x) { return mx::reshape(x, {batch, length, heads, head_dim}); };
  auto q = by_head(products[0]), k = by_head(products[1]);
  if (q_norm) q = normed(scope.tensors, *q_norm, q);
  if (k_norm) k = normed(scope.tensors, *k_norm, k);
  const int offset = context.cache ? context.cache->length() : context.offset;
  if (rope) {
    const auto inv_freq = inverse_frequencies(*rope, offset + length);
    for (auto* x : {&q, &k}) *x = kernels::rope(*x, inv_freq, offset, rope->magnitude, rope->interleaved, std::nullopt);
  }
  const auto head_first = [](const mx::array& x) { return mx::swapaxes(f32(x), 1, 2); };
  std::optional<mx::array> begins;
  if (context.segments) begins = mx::subtract(mx::arange(length, mx::int32), positions(context, batch, length));
  State state = context.cache ? context.cache->kept(scope.block, input.path) : std::nullopt;
  const auto y = decayed(mx::multiply(head_first(q), mx::array(scale)), head_first(k), head_first(by_head(products[2])),
                         mx::array(log_decays.data(), {heads}, mx::float32), begins, state);
  if (context.cache) context.cache->keep(scope.block, input.path, *state);
  const auto together = mx::reshape(mx::astype(mx::swapaxes(y, 1, 2), h.dtype()), {batch, length, groups, heads * head_dim / groups});
  const auto even = mx::reshape(kernels::rms_norm(together, std::nullopt, norm.eps), {batch, length, heads * head_dim});
  const auto weighed = mx::multiply(mx::astype(scope.tensor(norm.weight_name()), h.dtype()), even);
  Flow next{{kernels::gated(products[3], weighed, kernels::Activation::sigmoid)}, {}};
  scope.observe(output, next.inputs[0]);
  return next;
}

mx::array Lightning::finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const {
  return kernels::linear(at.inputs[0], scope.weight(output), residual);
}

/// The norm's weight is a factor of each column of the output's.
std::vector<Edge> Lightning::edges() const {
  Edge edge;
  edge.producer = norm.path;
  edge.norm = norm;
  edge.consumers = {output.path};
  edge.channels = edge.head_dim = norm.size;
  return {edge};
}

}  // namespace lquant::model
