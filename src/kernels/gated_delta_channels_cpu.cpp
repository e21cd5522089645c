// The gated delta rule with a decay for each key channel, one key head of one row a task, token by token: with a token's keys written out the state
// is a matrix S [Dk, Dv] in the second-level cache, which two passes change and read,
//   S̃ = a S,  e = v − S̃ᵀ k,  S′ = S̃ + k (β e)ᵀ,  y = S′ᵀ q.
// Chunks would save passes but not products: decays of their own for each channel stand inside those (gated_delta.cpp).
//
// The backward pass first runs forward to have the state before each chunk, then through the chunks backwards, with all states of one. With dS the
// gradient of S′ and w = β dSᵀ k:
//   dS ← dS + q dyᵀ,  dq = S′ dy,  dβ = e·dSᵀ k,  dv = w,  dk = dS (β e) − S̃ w,  dS̃ = dS − k wᵀ,  dlog a = rows of dS̃ ⊙ S̃,  dS ← a dS̃.
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention_blocks.h"
#include "kernels/gated_delta_paths.h"
#include "kernels/gated_delta_problem.h"
#include "kernels/multiversion.h"

namespace lquant::kernels {
namespace {

using blockwise::run_tasks;
using delta::first_state;
using delta::lane_dot;
using delta::transpose;
using std::int64_t;

// The backward pass keeps T / chunk + chunk states, fewest where chunks are √T long: of some thousand tokens.
constexpr int64_t kChunk = 64;

struct Problem : delta::Problem {
  int64_t chunks;
  const float *q, *k, *v;

  Problem(const std::vector<mx::array>& in, bool has_state, bool has_segments)
      : delta::Problem(in, has_state, has_segments),
        chunks((tokens + kChunk - 1) / kChunk),
        q(in[0].data<float>()),
        k(in[1].data<float>()),
        v(in[2].data<float>()) {}
};

/// Of one value head where the numbers of a token begin.
struct Token {
  int64_t key, value, decay, scalar;
  bool begins;

  Token(const Problem& p, int64_t b, int64_t h, int64_t t) {
    const int64_t at = b * p.tokens + t, head = at * p.value_heads() + h;
    key = (at * p.key_heads + h / p.repeats) * p.key_dim;
    value = head * p.value_dim;
    decay = head * p.key_dim;
    scalar = head;
    begins = p.begins(b, t);
  }
};

/// What each channel decays by: 0 where a text begins.
void decays(const Problem& p, const Token& token, float* factor) {
  for (int64_t i = 0; i < p.key_dim; ++i) factor[i] = token.begins ? 0 : std::exp(p.log_decay[token.decay + i]);
}

/// From the state `from` [Dk, Dv] before a token to `to`, which may be the same, behind it; error [Dv] = e. Of the sums y [Dv] too, unless it is
/// null.
LQUANT_MULTIVERSION void step(const Problem& p, const Token& token, const float* factor, const float* from, float* to, float* error, float* y) {
  const int64_t dk = p.key_dim, dv = p.value_dim;
  const float *q = p.q + token.key, *k = p.k + token.key, *v = p.v + token.value, beta = p.beta[token.scalar];
  std::copy_n(v, dv, error);
  for (int64_t i = 0; i < dk; ++i)
    for (int64_t c = 0; c < dv; ++c) error[c] -= k[i] * (to[i * dv + c] = factor[i] * from[i * dv + c]);
  if (y) std::fill_n(y, dv, 0.0f);
  for (int64_t i = 0; i < dk; ++i) {
    float* row = to + i * dv;
    for (int64_t c = 0; c < dv; ++c) row[c] += k[i] * beta * error[c];
    if (y)
      for (int64_t c = 0; c < dv; ++c) y[c] += q[i] * row[c];
  }
}

void forward(const Problem& p, float* y, float* last) {
  run_tasks(p.batch * p.value_heads(), p.state_size() + p.value_dim + p.key_dim, [&](int64_t task, float* memory) {
    const int64_t b = task / p.value_heads(), h = task % p.value_heads();
    float *state = memory, *error = state + p.state_size(), *factor = error + p.value_dim;
    first_state(p, b, h, state);
    for (int64_t t = 0; t < p.tokens; ++t) {
      const Token token(p, b, h, t);
      decays(p, token, factor);
      step(p, token, factor, state, state, error, y + token.value);
    }
    transpose(state, p.key_dim, p.value_dim, last + task * p.state_size());
  });
}

struct Gradients {
  float *dq, *dk, *dv, *dlog_decay, *dbeta, *dstate;
};

/// One token's gradients; dstate [Dk, Dv] is that of the state behind it, and then of the one before it. pulled holds Dv floats. What is of the key
/// head is added.
LQUANT_MULTIVERSION void pull(const Problem& p, const Token& token, const float* factor, const float* before, const float* behind, const float* error,
                              const float* dy, float* dstate, float* pulled, const Gradients& out) {
  const int64_t dk = p.key_dim, dv = p.value_dim;
  const float *q = p.q + token.key, *k = p.k + token.key, beta = p.beta[token.scalar];
  std::fill_n(pulled, dv, 0.0f);
  for (int64_t i = 0; i < dk; ++i) {
    out.dq[token.key + i] += lane_dot(behind + i * dv, dy, dv);
    for (int64_t c = 0; c < dv; ++c) pulled[c] += k[i] * (dstate[i * dv + c] += q[i] * dy[c]);
  }
  out.dbeta[token.scalar] = lane_dot(error, pulled, dv);
  float* w = out.dv + token.value;
  for (int64_t c = 0; c < dv; ++c) w[c] = beta * pulled[c];
  for (int64_t i = 0; i < dk; ++i) {
    float* row = dstate + i * dv;
    const float* state = before + i * dv;
    out.dk[token.key + i] += beta * lane_dot(row, error, dv) - factor[i] * lane_dot(state, w, dv);
    for (int64_t c = 0; c < dv; ++c) row[c] -= k[i] * w[c];
    out.dlog_decay[token.decay + i] = factor[i] * lane_dot(row, state, dv);
    for (int64_t c = 0; c < dv; ++c) row[c] *= factor[i];
  }
}

void backward(const Problem& p, const float* dy, const float* dlast, const Gradients& out) {
  const int64_t size = p.state_size(), dk = p.key_dim, dv = p.value_dim, longest = std::min(p.tokens, kChunk);
  std::fill_n(out.dq, p.batch * p.tokens * p.key_heads * dk, 0.0f);
  std::fill_n(out.dk, p.batch * p.tokens * p.key_heads * dk, 0.0f);
  const int64_t floats = (p.chunks + longest + 2) * size + (longest + 1) * dv + longest * dk;
  run_tasks(p.batch * p.key_heads, floats, [&](int64_t task, float* memory) {
    const int64_t b = task / p.key_heads;
    float *checkpoints = memory, *states = checkpoints + p.chunks * size, *dstate = states + (longest + 1) * size;
    float *errors = dstate + size, *pulled = errors + longest * dv, *factors = pulled + dv;
    for (int64_t r = 0; r < p.repeats; ++r) {
      const int64_t h = task % p.key_heads * p.repeats + r;
      const auto run = [&](int64_t t, const float* from, float* to, float* factor, float* error) {
        const Token token(p, b, h, t);
        decays(p, token, factor);
        step(p, token, factor, from, to, error, nullptr);
      };
      first_state(p, b, h, checkpoints);
      for (int64_t n = 0; n + 1 < p.chunks; ++n) {
        float* next = checkpoints + (n + 1) * size;
        for (int64_t t = 0; t < kChunk; ++t) run(n * kChunk + t, t == 0 ? checkpoints + n * size : next, next, factors, errors);
      }
      transpose(dlast + (b * p.value_heads() + h) * size, dv, dk, dstate);
      for (int64_t n = p.chunks - 1; n >= 0; --n) {
        const int64_t first = n * kChunk, count = std::min(kChunk, p.tokens - first);
        std::copy_n(checkpoints + n * size, size, states);
        for (int64_t i = 0; i < count; ++i) run(first + i, states + i * size, states + (i + 1) * size, factors + i * dk, errors + i * dv);
        for (int64_t i = count - 1; i >= 0; --i) {
          const Token token(p, b, h, first + i);
          pull(p, token, factors + i * dk, states + i * size, states + (i + 1) * size, errors + i * dv, dy + token.value, dstate, pulled, out);
        }
      }
      if (out.dstate) transpose(dstate, dk, dv, out.dstate + (b * p.value_heads() + h) * size);
    }
  });
}

}  // namespace

std::pair<mx::array, mx::array> gated_delta_channels_cpu(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                                         const mx::array& beta, const std::optional<mx::array>& segments,
                                                         const std::optional<mx::array>& state) {
  std::vector<mx::array> inputs;
  for (const auto* x : {&q, &k, &v, &log_decay, &beta}) inputs.push_back(mx::astype(*x, mx::float32));
  const auto [y, last] = delta::op(
      "gated_delta_channels", "gated_delta_channels_vjp", inputs, state, segments,
      [](const delta::Arrays& x, bool has_state, bool has_segments, delta::Arrays& out) {
        forward(Problem(x, has_state, has_segments), out[0].data<float>(), out[1].data<float>());
      },
      [](const delta::Arrays& x, bool has_state, bool has_segments, delta::Arrays& out) {
        const std::size_t count = x.size() - 2;
        const auto to = [&](int i) { return out[i].data<float>(); };
        backward(Problem(x, has_state, has_segments), x[count].data<float>(), x[count + 1].data<float>(),
                 {to(0), to(1), to(2), to(3), to(4), has_state ? to(5) : nullptr});
      });
  return {mx::astype(y, q.dtype()), last};
}

}  // namespace lquant::kernels
