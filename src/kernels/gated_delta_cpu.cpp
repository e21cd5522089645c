// The equations of gated_delta.cpp, one key head of one row a task, chunk by chunk, with the state [Dk, Dv] in the second-level cache. Decays are
// products of what each token decays by, with 0 where a text begins, so that texts need no masks; what a chunk writes is found by substitution.
//
// The backward pass first runs through the chunks to have the state before each, then through them backwards. With X = V′, dS the gradient of the
// state behind the chunk, c and t the decays of the state and of each token to the chunk's end:
//   dX = Mᵀ dY + t K dS,  Z = (I + A)⁻ᵀ dX,  dV = β Z,  dA = −Z Xᵀ,  dM = dY Xᵀ,  dS ← c dS − Kᵀ (r β Z) + Qᵀ (r dY),
// where r are the decays from the chunk's beginning and M = D ⊙ Q Kᵀ. D_ij depends on the logarithms of the tokens behind j up to i: the gradient of
// one is the sum of dD ⊙ D over the rectangle of pairs that it lies between, which the sums of rows and columns give one after the other.
#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention_blocks.h"
#include "kernels/gated_delta_paths.h"
#include "kernels/gated_delta_problem.h"
#include "kernels/gemm.h"
#include "kernels/multiversion.h"
#include "kernels/storage.h"

namespace lquant::kernels {
namespace {

using blockwise::run_tasks;
using delta::first_state;
using delta::transpose;
using std::int64_t;

constexpr int64_t kChunk = 64;
// Decays below this are 0: subnormal numbers are slow, and nothing that they multiply is seen beside what they are added to.
constexpr float kNothing = 0x1p-100f;

struct Problem : delta::Problem {
  int64_t chunk, chunks;
  bool bf16;
  const char *q, *k, *v;

  Problem(const std::vector<mx::array>& in, bool has_state, bool has_segments)
      : delta::Problem(in, has_state, has_segments),
        chunk(std::min(tokens, kChunk)),
        chunks((tokens + chunk - 1) / chunk),
        bf16(in[0].dtype() == mx::bfloat16),
        q(in[0].data<char>()),
        k(in[1].data<char>()),
        v(in[2].data<char>()) {}

  /// Tokens of chunk n that there are.
  int64_t valid(int64_t n) const { return std::min(chunk, tokens - n * chunk); }
};

/// A [rows, width] block of a tensor whose rows lie `stride` elements apart.
struct Rows {
  int64_t rows, width, stride;
};

template <class T>
LQUANT_INLINE void widen_rows(const char* from, Rows r, int64_t all, float* to) {
  const auto* source = reinterpret_cast<const typename T::Bits*>(from);
  for (int64_t i = 0; i < r.rows; ++i)
    for (int64_t j = 0; j < r.width; ++j) to[i * r.width + j] = T::load(source[i * r.stride + j]);
  std::fill(to + r.rows * r.width, to + all * r.width, 0.0f);
}

/// The block in f32, and zeros up to `all` rows.
LQUANT_MULTIVERSION void widen(const char* from, bool bf16, Rows r, int64_t all, float* to) {
  bf16 ? widen_rows<BFloat16>(from, r, all, to) : widen_rows<Float32>(from, r, all, to);
}

template <class T>
LQUANT_INLINE void narrow_rows(const float* from, Rows r, char* to) {
  auto* target = reinterpret_cast<typename T::Bits*>(to);
  for (int64_t i = 0; i < r.rows; ++i)
    for (int64_t j = 0; j < r.width; ++j) target[i * r.stride + j] = T::store(from[i * r.width + j]);
}

LQUANT_MULTIVERSION void narrow(const float* from, bool bf16, Rows r, char* to) {
  bf16 ? narrow_rows<BFloat16>(from, r, to) : narrow_rows<Float32>(from, r, to);
}

/// decay[i, j] from token j to token i ≤ the chunk, 0 above the diagonal; front[i] from before the chunk. factor[i] is what token i decays by.
LQUANT_MULTIVERSION void decays(const float* factor, int64_t count, float* decay, float* front) {
  float before = 1;
  for (int64_t i = 0; i < count; ++i) {
    const float f = factor[i];
    float* row = decay + i * count;
    if (i > 0) {
      const float* above = row - count;
      for (int64_t j = 0; j < i; ++j) {
        const float d = above[j] * f;
        row[j] = d < kNothing ? 0 : d;
      }
    }
    row[i] = 1;
    std::fill(row + i + 1, row + count, 0.0f);
    before *= f;
    front[i] = before = before < kNothing ? 0 : before;
  }
}

/// out[i] = strength[i] · (v[i] − front[i] · known[i]): what stands on the right of the chunk's equations.
LQUANT_MULTIVERSION void unknowns(const float* v, const float* known, const float* front, const float* strength, int64_t count, int64_t width,
                                  float* out) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < width; ++j) out[i * width + j] = strength[i] * (v[i * width + j] - front[i] * known[i * width + j]);
}

/// a[i, j] = strength[i] · decay[i, j] · products[i, j], of which what lies below the diagonal is used.
LQUANT_MULTIVERSION void weigh(const float* decay, const float* products, const float* strength, int64_t count, float* a) {
  for (int64_t i = 0; i < count; ++i) {
    const float s = strength ? strength[i] : 1;
    for (int64_t j = 0; j < count; ++j) a[i * count + j] = s * decay[i * count + j] * products[i * count + j];
  }
}

/// x ← (I + a)⁻¹ x, a below its diagonal. Columns go by blocks, whose sums stay in registers.
LQUANT_MULTIVERSION void solve_down(const float* a, int64_t count, int64_t width, float* x) {
  constexpr int64_t kBlock = 64;
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t columns = std::min(kBlock, width - first);
    for (int64_t i = 1; i < count; ++i) {
      float sum[kBlock] = {};
      if (columns == kBlock) {
        for (int64_t j = 0; j < i; ++j) {
          const float factor = a[i * count + j];
          const float* row = x + j * width + first;
          for (int64_t c = 0; c < kBlock; ++c) sum[c] += factor * row[c];
        }
      } else {
        for (int64_t j = 0; j < i; ++j)
          for (int64_t c = 0; c < columns; ++c) sum[c] += a[i * count + j] * x[j * width + first + c];
      }
      for (int64_t c = 0; c < columns; ++c) x[i * width + first + c] -= sum[c];
    }
  }
}

/// x ← (I + a)⁻ᵀ x.
LQUANT_MULTIVERSION void solve_up(const float* a, int64_t count, int64_t width, float* x) {
  for (int64_t i = count - 1; i > 0; --i)
    for (int64_t j = 0; j < i; ++j) {
      const float factor = a[i * count + j];
      for (int64_t c = 0; c < width; ++c) x[j * width + c] -= factor * x[i * width + c];
    }
}

/// to[i] = (add ? to[i] : 0) + factor[i] · x[i], row by row.
LQUANT_MULTIVERSION void scale_rows(const float* factor, const float* x, int64_t count, int64_t width, bool add, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    const float f = factor[i];
    if (add) {
      for (int64_t j = 0; j < width; ++j) to[i * width + j] += f * x[i * width + j];
    } else {
      for (int64_t j = 0; j < width; ++j) to[i * width + j] = f * x[i * width + j];
    }
  }
}

LQUANT_MULTIVERSION void scale_all(float factor, int64_t count, float* x) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

LQUANT_MULTIVERSION float dot(const float* a, const float* b, int64_t count) { return delta::lane_dot(a, b, count); }

Matrix matrix(const float* data, int64_t row, bool transposed = false) { return {data, mx::float32, row, transposed}; }

void product(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, bool add, float* c) {
  gemm(m, n, k, 1, a, b, add ? 1 : 0, c, mx::float32, n);
}

/// One value head's numbers for the tokens of a chunk: its decay at each and from before the chunk, β, and the decay to the chunk's end.
struct Head {
  std::vector<float> factor, front, strength, to_end;
};

/// The forward computation of one key head's value heads in one chunk; buffers are a task's own.
class Chunks {
 public:
  static int64_t floats(const Problem& p) {
    const int64_t c = p.chunk;
    return 2 * c * p.key_dim + 2 * c * c + 2 * c * p.value_dim + 2 * c * p.value_dim + 3 * c * c;
  }
  Chunks(const Problem& problem, float* memory) : p(problem), head{} {
    const int64_t c = p.chunk;
    keys = memory, queries = keys + c * p.key_dim;
    products = queries + c * p.key_dim;
    known = products + 2 * c * c;
    values = known + 2 * c * p.value_dim, written = values + c * p.value_dim;
    decay = written + c * p.value_dim, equations = decay + c * c, seen = equations + c * c;
    for (auto* numbers : {&head.factor, &head.front, &head.strength, &head.to_end}) numbers->resize(c);
  }

  /// Keys, queries and their products, which the value heads share.
  void open(int64_t b, int64_t key_head, int64_t n, bool with_queries) {
    b_ = b, n_ = n, key_head_ = key_head;
    const Rows rows{p.valid(n), p.key_dim, p.key_heads * p.key_dim};
    const int64_t at = offset(key_head, p.key_heads, p.key_dim);
    widen(p.k + at, p.bf16, rows, p.chunk, keys);
    widen(p.q + at, p.bf16, rows, p.chunk, queries);
    product((with_queries ? 2 : 1) * p.chunk, p.chunk, p.key_dim, matrix(keys, p.key_dim), matrix(keys, p.key_dim, true), false, products);
  }

  /// What value head r writes, found from the state before the chunk.
  void write(int64_t r, const float* state, bool with_queries) {
    const int64_t c = p.chunk, h = key_head_ * p.repeats + r, valid = p.valid(n_);
    widen(p.v + offset(h, p.value_heads(), p.value_dim), p.bf16, {valid, p.value_dim, p.value_heads() * p.value_dim}, c, values);
    for (int64_t i = 0; i < c; ++i) {
      const int64_t t = n_ * c + i, at = (b_ * p.tokens + t) * p.value_heads() + h;
      head.factor[i] = i >= valid ? 1 : p.begins(b_, t) ? 0 : std::exp(p.log_decay[at]);
      head.strength[i] = i >= valid ? 0 : p.beta[at];
    }
    decays(head.factor.data(), c, decay, head.front.data());
    std::copy_n(decay + (c - 1) * c, c, head.to_end.data());
    product((with_queries ? 2 : 1) * c, p.value_dim, p.key_dim, matrix(keys, p.key_dim), matrix(state, p.value_dim), false, known);
    unknowns(values, known, head.front.data(), head.strength.data(), c, p.value_dim, written);
    weigh(decay, products, head.strength.data(), c, equations);
    solve_down(equations, c, p.value_dim, written);
    if (with_queries) weigh(decay, products + c * c, nullptr, c, seen);
  }

  /// From the state before the chunk to that behind it. `scratch` holds chunk · Dv floats.
  void move_on(float* state, float* scratch) const {
    scale_rows(head.to_end.data(), written, p.chunk, p.value_dim, false, scratch);
    scale_all(head.front.back(), p.state_size(), state);
    product(p.key_dim, p.value_dim, p.chunk, matrix(keys, p.key_dim, true), matrix(scratch, p.value_dim), true, state);
  }

  /// Bytes from a tensor's beginning to the chunk's first token, head h of `heads`.
  int64_t offset(int64_t h, int64_t heads, int64_t width) const { return ((b_ * p.tokens + n_ * p.chunk) * heads + h) * width * (p.bf16 ? 2 : 4); }

  const Problem& p;
  Head head;
  float *keys, *queries;     ///< [C, Dk] each, one after the other
  float* products;           ///< K Kᵀ and Q Kᵀ [C, C]
  float* known;              ///< K S and Q S [C, Dv]
  float *values, *written;   ///< V and V′ [C, Dv]
  float *decay, *equations;  ///< D and A [C, C]
  float* seen;               ///< M [C, C]

 private:
  int64_t b_ = 0, n_ = 0, key_head_ = 0;
};

void forward(const Problem& p, char* y, float* last) {
  const int64_t size = p.state_size(), c = p.chunk;
  run_tasks(p.batch * p.key_heads, Chunks::floats(p) + p.repeats * size + c * p.value_dim, [&](int64_t task, float* memory) {
    const int64_t b = task / p.key_heads, key_head = task % p.key_heads;
    Chunks chunks(p, memory);
    float *states = memory + Chunks::floats(p), *scratch = states + p.repeats * size;
    for (int64_t r = 0; r < p.repeats; ++r) first_state(p, b, key_head * p.repeats + r, states + r * size);
    for (int64_t n = 0; n < p.chunks; ++n) {
      chunks.open(b, key_head, n, true);
      for (int64_t r = 0; r < p.repeats; ++r) {
        chunks.write(r, states + r * size, true);
        float* read = chunks.known + c * p.value_dim;
        scale_rows(chunks.head.front.data(), read, c, p.value_dim, false, read);
        product(c, p.value_dim, c, matrix(chunks.seen, c), matrix(chunks.written, p.value_dim), true, read);
        narrow(read, p.bf16, {p.valid(n), p.value_dim, p.value_heads() * p.value_dim},
               y + chunks.offset(key_head * p.repeats + r, p.value_heads(), p.value_dim));
        chunks.move_on(states + r * size, scratch);
      }
    }
    for (int64_t r = 0; r < p.repeats; ++r)
      transpose(states + r * size, p.key_dim, p.value_dim, last + (b * p.value_heads() + key_head * p.repeats + r) * size);
  });
}

struct Gradients {
  char *dq, *dk, *dv;
  float *dlog_decay, *dbeta, *dstate;
};

/// dβ, the gradients of K Kᵀ and Q Kᵀ (added to `dproducts`), and of the logarithms, from ZXᵀ and dY Xᵀ in `outer`. dfront and dto_end are those of
/// the decays from before the chunk and to its end.
void pair_gradients(const Chunks& chunks, const float* outer, const float* dfront, const float* dto_end, int64_t valid, float* dproducts,
                    std::vector<double>& dbeta, std::vector<double>& dlog) {
  const int64_t c = chunks.p.chunk;
  const auto& head = chunks.head;
  std::vector<double> of_rows(c), of_columns(c);
  for (int64_t i = 0; i < c; ++i) {
    const float *decay = chunks.decay + i * c, *kk = chunks.products + i * c, *qk = kk + c * c, *da = outer + i * c, *dm = da + c * c;
    float *dkk = dproducts + i * c, *dqk = dkk + c * c;
    for (int64_t j = 0; j < i; ++j) {
      const double a = -static_cast<double>(da[j]) * decay[j], m = static_cast<double>(dm[j]) * decay[j];
      double h = a * head.strength[i] * kk[j] + m * qk[j];
      dbeta[i] += a * kk[j];
      dkk[j] += static_cast<float>(a * head.strength[i]);
      dqk[j] += static_cast<float>(m);
      if (i == c - 1) h += static_cast<double>(dto_end[j]) * decay[j];
      of_rows[i] += h;
      of_columns[j] += h;
    }
    dqk[i] += dm[i];
  }
  double between = 0;
  for (int64_t i = 0; i < c; ++i) {
    dlog[i] += between;
    between += of_columns[i] - of_rows[i];
  }
  double from_front = 0;
  for (int64_t i = c - 1; i >= 0; --i) dlog[i] += from_front += static_cast<double>(dfront[i]) * head.front[i];
  for (int64_t i = 0; i < valid; ++i)
    if (head.factor[i] == 0) dlog[i] = 0;  // what begins a text, or decays all
}

void backward(const Problem& p, const char* dy, const float* dlast, const Gradients& out) {
  const int64_t size = p.state_size(), c = p.chunk, dk = p.key_dim, dv = p.value_dim;
  const int64_t floats = Chunks::floats(p) + p.repeats * (p.chunks + 1) * size + 6 * c * dv + 2 * c * c + 2 * c * c + 2 * c * dk + 2 * c;
  run_tasks(p.batch * p.key_heads, floats, [&](int64_t task, float* memory) {
    const int64_t b = task / p.key_heads, key_head = task % p.key_heads;
    Chunks chunks(p, memory);
    float* states = memory + Chunks::floats(p);                        // [chunks, repeats, Dk, Dv]
    float* dstates = states + p.chunks * p.repeats * size;             // [repeats, Dk, Dv]
    float *z = dstates + p.repeats * size, *dresult = z + c * dv;      // Z above dY: [2C, Dv]
    float *pulled = dresult + c * dv, *asked = pulled + c * dv;        // the gradients of K S above those of Q S
    float *scratch = asked + c * dv, *told = scratch + c * dv;         // [C, Dv] each
    float *outer = told + c * dv, *dproducts = outer + 2 * c * c;      // [2C, C] each
    float *dkeys = dproducts + 2 * c * c, *dqueries = dkeys + c * dk;  // [C, Dk] each
    float *dfront = dqueries + c * dk, *dto_end = dfront + c;

    for (int64_t r = 0; r < p.repeats; ++r) {
      const int64_t h = key_head * p.repeats + r;
      first_state(p, b, h, states + r * size);
      transpose(dlast + (b * p.value_heads() + h) * size, dv, dk, dstates + r * size);
    }
    for (int64_t n = 0; n + 1 < p.chunks; ++n) {
      chunks.open(b, key_head, n, false);
      for (int64_t r = 0; r < p.repeats; ++r) {
        float *state = states + (n * p.repeats + r) * size, *next = states + ((n + 1) * p.repeats + r) * size;
        chunks.write(r, state, false);
        std::copy_n(state, size, next);
        chunks.move_on(next, scratch);
      }
    }
    for (int64_t n = p.chunks - 1; n >= 0; --n) {
      const int64_t valid = p.valid(n);
      chunks.open(b, key_head, n, true);
      std::fill_n(dproducts, 2 * c * c, 0.0f);
      std::fill_n(dkeys, 2 * c * dk, 0.0f);
      for (int64_t r = 0; r < p.repeats; ++r) {
        const int64_t h = key_head * p.repeats + r;
        const float* state = states + (n * p.repeats + r) * size;
        float* dstate = dstates + r * size;
        const Rows rows{valid, dv, p.value_heads() * dv};
        const int64_t at = chunks.offset(h, p.value_heads(), dv);
        chunks.write(r, state, true);
        const auto& head = chunks.head;
        widen(dy + at, p.bf16, rows, c, dresult);

        product(c, dv, dk, matrix(chunks.keys, dk), matrix(dstate, dv), false, told);
        product(c, dv, c, matrix(chunks.seen, c, true), matrix(dresult, dv), false, z);
        scale_rows(head.to_end.data(), told, c, dv, true, z);
        solve_up(chunks.equations, c, dv, z);

        const float *known = chunks.known, *read = known + c * dv;
        std::vector<double> dbeta(c), dlog(c);
        for (int64_t i = 0; i < c; ++i) {
          const float *zi = z + i * dv, *ki = known + i * dv;
          const float through_known = dot(zi, ki, dv);
          dbeta[i] = dot(zi, chunks.values + i * dv, dv) - head.front[i] * through_known;
          dfront[i] = dot(dresult + i * dv, read + i * dv, dv) - head.strength[i] * through_known;
          dto_end[i] = dot(chunks.written + i * dv, told + i * dv, dv);
        }
        dfront[c - 1] += dot(dstate, state, size);
        scale_rows(head.strength.data(), z, c, dv, false, scratch);
        narrow(scratch, p.bf16, rows, out.dv + at);

        // Through the state: K S and Q S, and what was written to the state behind.
        std::vector<float> front(head.front), minus(c);
        for (int64_t i = 0; i < c; ++i) minus[i] = -front[i];
        scale_rows(minus.data(), scratch, c, dv, false, pulled);
        scale_rows(front.data(), dresult, c, dv, false, asked);
        product(2 * c, dk, dv, matrix(pulled, dv), matrix(state, dv, true), true, dkeys);
        scale_rows(head.to_end.data(), chunks.written, c, dv, false, scratch);
        product(c, dk, dv, matrix(scratch, dv), matrix(dstate, dv, true), true, dkeys);
        scale_all(front[c - 1], size, dstate);
        product(dk, dv, 2 * c, matrix(chunks.keys, dk, true), matrix(pulled, dv), true, dstate);

        product(2 * c, c, dv, matrix(z, dv), matrix(chunks.written, dv, true), false, outer);
        pair_gradients(chunks, outer, dfront, dto_end, valid, dproducts, dbeta, dlog);
        for (int64_t i = 0; i < valid; ++i) {
          const int64_t one = (b * p.tokens + n * c + i) * p.value_heads() + h;
          out.dlog_decay[one] = static_cast<float>(dlog[i]);
          out.dbeta[one] = static_cast<float>(dbeta[i]);
        }
      }
      product(2 * c, dk, c, matrix(dproducts, c), matrix(chunks.keys, dk), true, dkeys);
      product(c, dk, 2 * c, matrix(dproducts, c, true), matrix(chunks.keys, dk), true, dkeys);
      const Rows rows{valid, dk, p.key_heads * dk};
      const int64_t at = chunks.offset(key_head, p.key_heads, dk);
      narrow(dkeys, p.bf16, rows, out.dk + at);
      narrow(dqueries, p.bf16, rows, out.dq + at);
    }
    if (!out.dstate) return;
    for (int64_t r = 0; r < p.repeats; ++r)
      transpose(dstates + r * size, dk, dv, out.dstate + (b * p.value_heads() + key_head * p.repeats + r) * size);
  });
}

}  // namespace

std::pair<mx::array, mx::array> gated_delta_cpu(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                                const mx::array& beta, const std::optional<mx::array>& segments,
                                                const std::optional<mx::array>& state) {
  return delta::op(
      "gated_delta", "gated_delta_vjp", {q, k, v, mx::astype(log_decay, mx::float32), mx::astype(beta, mx::float32)}, state, segments,
      [](const delta::Arrays& x, bool has_state, bool has_segments, delta::Arrays& out) {
        forward(Problem(x, has_state, has_segments), out[0].data<char>(), out[1].data<float>());
      },
      [](const delta::Arrays& x, bool has_state, bool has_segments, delta::Arrays& out) {
        const std::size_t count = x.size() - 2;
        Gradients to{out[0].data<char>(),  out[1].data<char>(),  out[2].data<char>(),
                     out[3].data<float>(), out[4].data<float>(), has_state ? out[5].data<float>() : nullptr};
        backward(Problem(x, has_state, has_segments), x[count].data<char>(), x[count + 1].data<float>(), to);
      });
}

}  // namespace lquant::kernels
