// FlashAttention on the CPU (arXiv 2205.14135, 2307.08691): scores exist for one block of queries and keys at a time and stay in the
// second-level cache between the two products that make and use them. All products are f32, whose conversions from bf16 the product's
// own packing pays for, so probabilities are never rounded. The query heads that share a key head are stacked into one tall block, and
// blocks that causality, the window or the segments hide are not computed. With hardly any queries (decoding) the keys are read once by
// dot products instead, cut into parts that threads share (Flash-Decoding) and that are merged in order.
#include "kernels/attention_cpu.h"

#include <mlx/mlx.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/attention_paths.h"
#include "kernels/attention_rows.h"
#include "kernels/gemm.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace blockwise {
namespace {

// Measured on two cores for 64 features: 384 rows by 512 keys keep the products at nine tenths of their peak, and their 768 KiB of
// scores leave room in a cache of 2 MiB. More than 128 queries of a head would compute too much beyond the causal diagonal.
constexpr std::int64_t kRows = 384, kMostQueries = 128, kKeys = 512;
// Up to this many rows the dot products win; and the keys of one part, enough work (some 20 µs) to be worth handing to a thread.
constexpr std::int64_t kThinRows = 16, kThinKeys = 512;
// Keys and values (in elements) that one thread reads in some 30 µs: with fewer, a second thread costs more than it brings.
constexpr std::int64_t kAlone = 1 << 17;

class Forward {
 public:
  Forward(const Problem& problem, char* out, float* log_sum)
      : p_(problem), visibility_(p_.shape, p_.args, p_.segments), out_(out), log_sum_(log_sum) {
    const auto& s = p_.shape;
    block_ = std::min(query_block(s), s.queries);
    rows_ = block_ * s.group();
    thin_ = s.queries * s.group() <= kThinRows;
    value_row_ = round_up(s.value_dim, kLanes);
    score_row_ = (thin_ ? kThinKeys : kKeys) + kLanes;  // the odd length keeps rows from meeting in the same cache sets
  }

  void run() {
    const auto& s = p_.shape;
    const std::int64_t groups = s.batch * s.kv_heads, blocks = (s.queries + block_ - 1) / block_;
    const std::int64_t scratch = rows_ * (s.dim + score_row_ + state_size());
    if (thin_) return run_thin(groups, scratch);
    // The last queries see the most keys: starting with them evens out the end.
    run_tasks(blocks * groups, scratch, [&](std::int64_t task, float* memory) {
      const std::int64_t block = blocks - 1 - task / groups, group = task % groups;
      const Range t{block * block_, std::min(s.queries, (block + 1) * block_)};
      const std::int64_t b = group / s.kv_heads, g = group % s.kv_heads;
      State state = state_at(memory + rows_ * (s.dim + score_row_));
      attend(b, g, t, visibility_.blocks(b, t, kKeys), memory, state);
      finish(b, g, t, state);
    });
  }

 private:
  /// Running maximum, denominator and unnormalised result of each row.
  struct State {
    float *maximum, *sum, *value;
  };
  std::int64_t state_size() const { return value_row_ + 2; }
  State state_at(float* memory) const { return {memory + rows_ * value_row_, memory + rows_ * (value_row_ + 1), memory}; }

  void attend(std::int64_t b, std::int64_t g, Range t, const std::vector<Range>& blocks, float* memory, const State& state) const {
    const auto& s = p_.shape;
    const std::int64_t group = s.group(), queries = t.size(), rows = group * queries;
    float *q = memory, *scores = memory + rows_ * s.dim;
    for (std::int64_t r = 0; r < rows; ++r) {
      widen(p_.query(b, t.begin + r % queries, g * group + r / queries), p_.bf16, p_.args.scale, s.dim, q + r * s.dim);
    }
    std::fill_n(state.value, rows * value_row_, 0.0f);
    std::fill_n(state.maximum, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(state.sum, rows, 0.0f);
    for (const Range& keys : blocks) {
      const char *k = p_.key(b, keys.begin, g), *v = p_.value(b, keys.begin, g);
      const std::int64_t k_row = s.kv_heads * s.dim, v_row = s.kv_heads * s.value_dim, n = keys.size();
      if (thin_) {
        thin_scores({q, k, p_.bf16, rows, n, s.dim, k_row, score_row_, scores});
      } else {
        gemm(rows, n, s.dim, 1, {q, mx::float32, s.dim}, {k, p_.dtype(), k_row, true}, 0, scores, mx::float32, score_row_);
      }
      softmax_block({&visibility_, visibility_.segments(b), scores, state.maximum, state.sum, state.value, group, t.begin, queries, keys.begin, n,
                     score_row_, value_row_, s.value_dim, p_.args.softcap});
      if (thin_) {
        thin_values({scores, v, p_.bf16, rows, n, s.value_dim, v_row, score_row_, value_row_, state.value});
      } else {
        gemm(rows, s.value_dim, n, 1, {scores, mx::float32, score_row_}, {v, p_.dtype(), v_row}, 1, state.value, mx::float32, value_row_);
      }
    }
  }

  void finish(std::int64_t b, std::int64_t g, Range t, const State& state) const {
    const auto& s = p_.shape;
    const std::int64_t queries = t.size();
    for (std::int64_t r = 0; r < s.group() * queries; ++r) {
      const std::int64_t h = g * s.group() + r / queries, at = t.begin + r % queries;
      float maximum = state.maximum[r], sum = state.sum[r], divisor = sum;
      if (p_.sinks) {  // it adds to the denominator alone; a divisor that leaves f32's range leaves nothing of the values
        divisor += std::exp(p_.sinks[h] - maximum);
        const float most = std::max(maximum, p_.sinks[h]);
        sum = sum * std::exp(maximum - most) + std::exp(p_.sinks[h] - most);
        maximum = most;
      }
      narrow(state.value + r * value_row_, divisor, s.value_dim, out_ + p_.at(b, s.queries, at, s.heads, h, s.value_dim), p_.bf16);
      log_sum_[p_.row_of(b, h, at)] = maximum + std::log(sum);
    }
  }

  /// Each task reads one block of keys; the parts of a text and head are then merged in the order of the keys.
  void run_thin(std::int64_t groups, std::int64_t scratch) const {
    const auto& s = p_.shape;
    const Range t{0, s.queries};
    std::vector<std::vector<Range>> blocks;
    std::size_t parts = 0;
    for (std::int64_t b = 0; b < s.batch; ++b) {
      blocks.push_back(visibility_.blocks(b, t, kThinKeys));
      parts = std::max(parts, blocks.back().size());
    }
    const std::int64_t size = rows_ * state_size();
    Scratch states(groups * parts * size);
    run_tasks(
        groups * parts, scratch,
        [&](std::int64_t task, float* memory) {
          const std::int64_t group = task / parts, b = group / s.kv_heads, part = task % parts;
          if (part >= std::ssize(blocks[b])) return;
          attend(b, group % s.kv_heads, t, {blocks[b][part]}, memory, state_at(states.data() + task * size));
        },
        groups * s.keys * (s.dim + s.value_dim) > kAlone);
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t b = group / s.kv_heads;
      const State whole = state_at(states.data() + group * parts * size);
      for (std::int64_t part = 1; part < std::ssize(blocks[b]); ++part) merge(state_at(states.data() + (group * parts + part) * size), whole);
      finish(b, group % s.kv_heads, t, whole);
    }
  }

  void merge(const State& part, const State& whole) const {
    for (std::int64_t r = 0; r < rows_; ++r) {
      const float maximum = std::max(whole.maximum[r], part.maximum[r]);
      if (std::isinf(maximum)) continue;  // neither has seen a key yet
      const float keep = std::exp(whole.maximum[r] - maximum), add = std::exp(part.maximum[r] - maximum);
      float *to = whole.value + r * value_row_, *from = part.value + r * value_row_;
      for (std::int64_t d = 0; d < p_.shape.value_dim; ++d) to[d] = keep * to[d] + add * from[d];
      whole.sum[r] = keep * whole.sum[r] + add * part.sum[r];
      whole.maximum[r] = maximum;
    }
  }

  const Problem& p_;
  Visibility visibility_;
  char* out_;
  float* log_sum_;
  std::int64_t block_, rows_, value_row_, score_row_;
  bool thin_;
};

}  // namespace

Problem::Problem(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array* segments, const mx::array* sinks,
                 const AttentionArgs& args)
    : shape(shape_of(q, k, v)),
      args(args),
      bf16(q.dtype() == mx::bfloat16),
      q(q.data<char>()),
      k(k.data<char>()),
      v(v.data<char>()),
      segments(segments ? segments->data<std::int32_t>() : nullptr),
      sinks(sinks ? sinks->data<float>() : nullptr) {}

std::int64_t query_block(const Shape& shape) { return std::clamp(round_up(kRows / shape.group(), kLanes), kLanes, kMostQueries); }

void forward(const Problem& problem, char* out, float* log_sum) { Forward(problem, out, log_sum).run(); }

}  // namespace blockwise

mx::array attention_cpu(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args,
                        const std::optional<mx::array>& segments, const std::optional<mx::array>& sinks) {
  std::vector<mx::array> inputs{q, k, v};
  if (segments) inputs.push_back(*segments);
  if (sinks) inputs.push_back(mx::astype(*sinks, mx::float32));
  const int segments_at = segments ? 3 : 0, sinks_at = sinks ? 3 + (segments ? 1 : 0) : 0;
  // `first` inputs stand before q.
  const auto problem = [=](const std::vector<mx::array>& in, int first) {
    const auto optional = [&](int at) { return at ? &in[first + at] : nullptr; };
    return blockwise::Problem(in[first], in[first + 1], in[first + 2], optional(segments_at), optional(sinks_at), args);
  };

  auto compute = [=](const std::vector<mx::array>& in, std::vector<mx::array>& out) {
    blockwise::forward(problem(in, 0), out[0].data<char>(), out[1].data<float>());
  };
  auto vjp = [=](const std::vector<mx::array>& in, const std::vector<mx::array>& cotangents, const std::vector<int>& argnums,
                 const std::vector<mx::array>& out) {
    if (args.branch_bits > 0) throw std::invalid_argument("[kernels] attention: branches have no gradient");
    std::vector<mx::array> from{out[0], out[1], mx::astype(cotangents[0], out[0].dtype())};
    from.insert(from.end(), in.begin(), in.end());
    auto gradient = [=](const std::vector<mx::array>& in, std::vector<mx::array>& result) {
      const auto of = problem(in, 3);
      const char *out = in[0].data<char>(), *cotangent = in[2].data<char>();
      const float* log_sum = in[1].data<float>();
      blockwise::backward(of, out, log_sum, cotangent, result[0].data<char>(), result[1].data<char>(), result[2].data<char>());
      if (sinks_at) blockwise::sink_gradients(of, out, log_sum, cotangent, result[3].data<float>());
    };
    std::vector<Output> outputs;
    for (int i = 0; i < 3; ++i) outputs.push_back({in[i].shape(), in[i].dtype()});
    if (sinks_at) outputs.push_back({in[sinks_at].shape(), mx::float32});
    const auto gradients = make_op("attention_vjp", from, outputs, gradient);
    std::vector<mx::array> asked;
    for (int i : argnums) asked.push_back(i < 3 ? gradients[i] : i == sinks_at ? gradients[3] : mx::zeros_like(in[i]));
    return asked;
  };
  const std::vector<Output> outputs{{{q.shape(0), q.shape(1), q.shape(2), v.shape(3)}, q.dtype()},
                                    {{q.shape(0), q.shape(2), q.shape(1)}, mx::float32}};
  return make_op("attention", inputs, outputs, compute, vjp)[0];
}

}  // namespace lquant::kernels
