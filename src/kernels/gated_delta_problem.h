#pragma once

#include <mlx/array.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/multiversion.h"
#include "kernels/primitive.h"

// What the CPU's loops of gated_delta.h have in common: sizes and inputs, the states' two layouts, and the op with its gradient.
namespace lquant::kernels::delta {

namespace mx = mlx::core;
using std::int64_t;

/// Inputs in the order of an op: q, k, v (their dtypes are the loops' own), log_decay, beta, state if there is one, segments if there are some.
struct Problem {
  int64_t batch, tokens, key_heads, repeats, key_dim, value_dim;
  const float *log_decay, *beta, *state;  ///< state may be null
  const std::int32_t* segments;           ///< may be null

  Problem(const std::vector<mx::array>& in, bool has_state, bool has_segments)
      : batch(in[0].shape(0)),
        tokens(in[0].shape(1)),
        key_heads(in[0].shape(2)),
        repeats(in[2].shape(2) / in[0].shape(2)),
        key_dim(in[0].shape(3)),
        value_dim(in[2].shape(3)),
        log_decay(in[3].data<float>()),
        beta(in[4].data<float>()),
        state(has_state ? in[5].data<float>() : nullptr),
        segments(has_segments ? in[has_state ? 6 : 5].data<std::int32_t>() : nullptr) {}

  int64_t value_heads() const { return key_heads * repeats; }
  int64_t state_size() const { return key_dim * value_dim; }
  bool begins(int64_t b, int64_t t) const { return segments && (t == 0 || segments[b * tokens + t] != segments[b * tokens + t - 1]); }
};

/// Σ a · b in lanes of 16, whatever the vectors of the processor.
LQUANT_INLINE float lane_dot(const float* a, const float* b, int64_t count) {
  constexpr int64_t kLanes = 16;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  float sum = 0;
  for (const float s : sums) sum += s;
  return sum;
}

inline void transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
}

/// That of value head h before the first token, [Dk, Dv].
inline void first_state(const Problem& p, int64_t b, int64_t h, float* state) {
  if (p.state)
    transpose(p.state + (b * p.value_heads() + h) * p.state_size(), p.value_dim, p.key_dim, state);
  else
    std::fill_n(state, p.state_size(), 0.0f);
}

using Arrays = std::vector<mx::array>;
/// forward(inputs, has_state, has_segments, {y, last state}); backward(inputs followed by the two cotangents, has_state, has_segments, a gradient for
/// each float input).
using Compute = std::function<void(const Arrays& in, bool has_state, bool has_segments, Arrays& out)>;

/// The op with its gradient, which has a name of its own: {y in q's dtype, the last state [B, Hv, Dv, Dk] in f32}. `inputs` are q, k, v, log_decay
/// and beta.
inline std::pair<mx::array, mx::array> op(const char* name, const char* name_of_gradient, Arrays inputs, const std::optional<mx::array>& state,
                                          const std::optional<mx::array>& segments, const Compute& forward, const Compute& backward) {
  const bool has_state = state.has_value(), has_segments = segments.has_value();
  if (state) inputs.push_back(*state);
  if (segments) inputs.push_back(*segments);
  const auto &q = inputs[0], &v = inputs[2];
  const std::vector<Output> outputs{{v.shape(), q.dtype()}, {{v.shape(0), v.shape(2), v.shape(3), q.shape(3)}, mx::float32}};
  const auto results = make_op(
      name, inputs, outputs, [=](const Arrays& x, Arrays& y) { forward(x, has_state, has_segments, y); },
      [=](const Arrays& x, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) {
        auto all_inputs = x;
        all_inputs.insert(all_inputs.end(), cotangents.begin(), cotangents.end());
        std::vector<Output> gradients;
        for (int i = 0; i < (has_state ? 6 : 5); ++i) gradients.push_back({x[i].shape(), x[i].dtype()});
        const auto all =
            make_op(name_of_gradient, all_inputs, gradients, [=](const Arrays& in, Arrays& out) { backward(in, has_state, has_segments, out); });
        Arrays chosen;
        for (const int i : argnums) chosen.push_back(all.at(i));
        return chosen;
      });
  return {results[0], results[1]};
}

}  // namespace lquant::kernels::delta
