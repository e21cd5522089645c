// The backward pass recomputes probabilities from the scores and each row's saved log-sum-exp (arXiv 2205.14135, appendix B):
//   P = e^(S − log_sum),  dS = P ∘ (dO·Vᵀ − delta) with delta = Σ dO ∘ O,  dV = Pᵀ·dO,  dK = dSᵀ·Q,  dQ = dS·K.
// Blocks hold the transposes Sᵀ and dPᵀ, keys by queries: then dV and dK, the sums over queries, are products of matrices as they lie, and
// dQᵀ = Kᵀ·dSᵀ transposes only the small block of keys. dS carries the scale.
//
// A task owns some blocks of queries of one group of heads, hence their dQ, and sums dK and dV of those queries into memory of its own;
// these sums are added in the order of tasks at the end. How the queries are shared among tasks depends on the shape alone, so neither
// the number of threads nor their timing changes a bit of the result.
#include <mlx/mlx.h>

#include <cmath>

#include "kernels/attention_cpu.h"
#include "kernels/attention_rows.h"
#include "kernels/gemm.h"

namespace lquant::kernels::blockwise {
namespace {

// Two blocks of scores, 384 rows by 256 keys each, take 768 KiB: room remains in a cache of 2 MiB.
constexpr std::int64_t kKeys = 256;
// As many tasks as are aimed at: enough to share evenly, few enough that their sums, S·(D + Dv) floats each, stay small.
constexpr std::int64_t kTasks = 16;
// Keys whose sums are added and written in one go.
constexpr std::int64_t kReducedKeys = 64;

class Backward {
 public:
  Backward(const Problem& problem, const char* out, const float* log_sum, const char* cotangent, char* dq, char* dk, char* dv)
      : p_(problem), visibility_(p_.shape, p_.args, p_.segments), out_(out), log_sum_(log_sum), cotangent_(cotangent), dq_(dq), dk_(dk), dv_(dv) {
    const auto& s = p_.shape;
    block_ = std::min(query_block(s), round_up(s.queries, kLanes));
    blocks_ = (s.queries + block_ - 1) / block_;
    groups_ = s.batch * s.kv_heads;
    parts_ = std::min(blocks_, (kTasks + groups_ - 1) / groups_);
    row_ = block_ * s.group() + kLanes;  // the odd length keeps rows from meeting in the same cache sets
  }

  void run() {
    const auto& s = p_.shape;
    const std::int64_t key_sum = s.keys * s.dim, value_sum = s.keys * s.value_dim;
    Scratch sums(groups_ * parts_ * (key_sum + value_sum));
    run_tasks(groups_ * parts_, scratch_size(), [&](std::int64_t task, float* memory) {
      const std::int64_t group = task / parts_, part = task % parts_;
      float* dk = sums.data() + task * (key_sum + value_sum);
      std::fill_n(dk, key_sum + value_sum, 0.0f);
      // There and back again: part 0 of 3 takes blocks 0, 5, 6, 11 …, so that under causality all parts have as much to do.
      for (std::int64_t block = 0; block < blocks_; ++block) {
        const std::int64_t turn = block % (2 * parts_);
        if (std::min(turn, 2 * parts_ - 1 - turn) != part) continue;
        const Range t{block * block_, std::min(s.queries, (block + 1) * block_)};
        queries(group / s.kv_heads, group % s.kv_heads, t, memory, dk, dk + key_sum);
      }
    });
    const std::int64_t slices = (s.keys + kReducedKeys - 1) / kReducedKeys;
    run_tasks(groups_ * slices, 0, [&](std::int64_t task, float*) {
      const std::int64_t group = task / slices, first = task % slices * kReducedKeys, last = std::min(s.keys, first + kReducedKeys);
      float* dk = sums.data() + group * parts_ * (key_sum + value_sum);
      reduce(group, first, last, s.dim, key_sum + value_sum, dk, dk_);
      reduce(group, first, last, s.value_dim, key_sum + value_sum, dk + key_sum, dv_);
    });
  }

 private:
  std::int64_t rows_most() const { return block_ * p_.shape.group(); }
  std::int64_t scratch_size() const {
    const auto& s = p_.shape;
    return rows_most() * (s.dim + s.value_dim + 2) + row_ * (s.dim + 2 * kKeys);
  }

  /// dQ of a block of queries, and what it adds to dK and dV.
  void queries(std::int64_t b, std::int64_t g, Range t, float* memory, float* dk, float* dv) const {
    const auto& s = p_.shape;
    const std::int64_t group = s.group(), columns = round_up(t.size(), kLanes), rows = group * columns;
    float *q = memory, *cotangent = q + rows_most() * s.dim, *dq = cotangent + rows_most() * s.value_dim;
    float *scores = dq + row_ * s.dim, *products = scores + row_ * kKeys, *log_sum = products + row_ * kKeys, *delta = log_sum + rows_most();
    for (std::int64_t r = 0; r < rows; ++r) load(b, g * group + r / columns, t.begin + r % columns, t.end, r, q, cotangent, log_sum, delta);
    std::fill_n(dq, row_ * s.dim, 0.0f);
    const std::int64_t k_row = s.kv_heads * s.dim, v_row = s.kv_heads * s.value_dim;
    const auto f32 = mx::float32;
    for (const Range& keys : visibility_.blocks(b, t, kKeys)) {
      const std::int64_t n = keys.size();
      const char *k = p_.key(b, keys.begin, g), *v = p_.value(b, keys.begin, g);
      gemm(n, rows, s.dim, 1, {k, p_.dtype(), k_row}, {q, f32, s.dim, true}, 0, scores, f32, row_);
      gemm(n, rows, s.value_dim, 1, {v, p_.dtype(), v_row}, {cotangent, f32, s.value_dim, true}, 0, products, f32, row_);
      gradient_block({&visibility_, visibility_.segments(b), scores, products, log_sum, delta, group, t.begin, t.size(), columns, keys.begin, n, row_,
                      p_.args.scale, p_.args.softcap});
      gemm(n, s.value_dim, rows, 1, {scores, f32, row_}, {cotangent, f32, s.value_dim}, 1, dv + keys.begin * s.value_dim, f32, s.value_dim);
      gemm(n, s.dim, rows, 1, {products, f32, row_}, {q, f32, s.dim}, 1, dk + keys.begin * s.dim, f32, s.dim);
      gemm(s.dim, rows, n, 1, {k, p_.dtype(), k_row, true}, {products, f32, row_}, 1, dq, f32, row_);
    }
    for (std::int64_t j = 0; j < group; ++j) {
      copy_matrix(t.size(), s.dim, {dq + j * columns, f32, row_, true}, dq_ + p_.at(b, s.queries, t.begin, s.heads, g * group + j, s.dim), p_.dtype(),
                  s.heads * s.dim);
    }
  }

  /// Row r of a block: query t of head h, or zeros when t lies beyond the block.
  void load(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t end, std::int64_t r, float* q, float* cotangent, float* log_sum,
            float* delta) const {
    const auto& s = p_.shape;
    if (t >= end) {
      std::fill_n(q + r * s.dim, s.dim, 0.0f);
      std::fill_n(cotangent + r * s.value_dim, s.value_dim, 0.0f);
      log_sum[r] = delta[r] = 0;
      return;
    }
    const std::int64_t at = p_.at(b, s.queries, t, s.heads, h, s.value_dim);
    widen(p_.query(b, t, h), p_.bf16, 1, s.dim, q + r * s.dim);
    delta[r] = widen_dot(cotangent_ + at, out_ + at, p_.bf16, s.value_dim, cotangent + r * s.value_dim);
    log_sum[r] = log_sum_[p_.row_of(b, h, t)];
  }

  /// Adds the parts of a group into the first, for some keys, and writes the result.
  void reduce(std::int64_t group, std::int64_t first, std::int64_t last, std::int64_t width, std::int64_t part_size, float* sums, char* to) const {
    const auto& s = p_.shape;
    float* total = sums + first * width;
    for (std::int64_t part = 1; part < parts_; ++part) accumulate(total + part * part_size, (last - first) * width, total);
    for (std::int64_t key = first; key < last; ++key) {
      narrow(sums + key * width, 1, width, to + p_.at(group / s.kv_heads, s.keys, key, s.kv_heads, group % s.kv_heads, width), p_.bf16);
    }
  }

  const Problem& p_;
  Visibility visibility_;
  const char* out_;
  const float* log_sum_;
  const char* cotangent_;
  char *dq_, *dk_, *dv_;
  std::int64_t block_, blocks_, groups_, parts_, row_;
};

}  // namespace

void backward(const Problem& problem, const char* out, const float* log_sum, const char* cotangent, char* dq, char* dk, char* dv) {
  Backward(problem, out, log_sum, cotangent, dq, dk, dv).run();
}

// A sink is a key whose dP is 0: its dS is −P·delta, with P = e^(sink − log_sum), and its gradient the sum of these over texts and queries.
void sink_gradients(const Problem& p, const char* out, const float* log_sum, const char* cotangent, float* dsinks) {
  const auto& s = p.shape;
  run_tasks(s.heads, s.value_dim, [&](std::int64_t h, float* memory) {
    double total = 0;
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t t = 0; t < s.queries; ++t) {
        const std::int64_t at = p.at(b, s.queries, t, s.heads, h, s.value_dim);
        total -= std::exp(p.sinks[h] - log_sum[p.row_of(b, h, t)]) * widen_dot(cotangent + at, out + at, p.bf16, s.value_dim, memory);
      }
    }
    dsinks[h] = static_cast<float>(total);
  });
}

}  // namespace lquant::kernels::blockwise
