// The bounds, with u = 2⁻²⁴ and every step to first order (a factor of 1.1 at the end covers products of errors):
//   score   e = (D + 4)·u·scale·Σ|q·k|: D products and sums in any order, the scale, reading q·scale;
//           + 12·u·|score| with softcap: Highway's tanh errs by 4 ulp (8 u), and is multiplied and divided by the cap.
//   weight  p = exp(score − M) / Σ exp(score − M): M shifts both alike, so a relative error of 2·max e over the row, of
//           2·u·(max − score) for the two rounded differences, of 4 u for the exponentials, and of (S + 16)·u for the sum, the rescaling
//           between blocks and the division:  η = 2·max e + (2·range + S + 20)·u. The saved log-sum-exp adds u·|log-sum-exp|.
//   out     Σ p·|v|·(η + (S + 4)·u) + unit·|out|.
//   dP      e_dP = (Dv + 2)·u·Σ|dO·v|;   delta = Σ dO·out: e_delta = Σ |dO|·(bound of out) + (Dv + 2)·u·Σ|dO·out|.
//   dS      |dS|·(η + 8 u) + p·scale·slope·(e_dP + e_delta) + p·scale·|dP − delta|·e_slope, where slope = 1 − tanh² of softcap and
//           e_slope = 2·(e / softcap + 12 u).
//   dq, dk, dv   the error of one factor times the other, plus (length of the sum + 20)·u of the sum of absolute terms, plus the rounding
//           of the result.
//   sinks   a score without error among a row's; dsink = −Σ p·delta over the rows: p·(|delta|·(η + 8 u) + e_delta), plus (R + 20)·u of the terms.
// With c = `inner` above 0 each step leaves its result in a coarser dtype, as MLX's ops do where nothing is fused:
//   score   + 2·c·scale·Σ|q·k| (q·scale, the product);   weight  + c relative;
//   dS      p·(dP − Σ p·dP) by the softmax's gradient: dP, p·dP, their sum, its product with p and the difference are rounded:
//           + p·scale·(4·c·Σ|dO·v| + 6·c·Σ p·Σ|dO·v|);
//   dsink   p·(0 − Σ p·dP) likewise: + p·6·c·Σ p·Σ|dO·v|, and each partial sum over the rows, of which there are R: (R + 3)·c of the terms;
//   dq, dk, dv   + 3·c of the sum of absolute terms: a head's result, its product with the scale, and the sum over the heads of a group.
#include "oracle/kernels_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lquant::oracle {
namespace {

constexpr double kU = 0x1p-24;

struct Rows {
  const AttentionSize& n;
  std::int64_t q(std::int64_t b, std::int64_t t, std::int64_t h) const { return ((b * n.queries + t) * n.heads + h) * n.dim; }
  std::int64_t out(std::int64_t b, std::int64_t t, std::int64_t h) const { return ((b * n.queries + t) * n.heads + h) * n.value_dim; }
  std::int64_t k(std::int64_t b, std::int64_t s, std::int64_t h) const {
    return ((b * n.keys + s) * n.kv_heads + h / (n.heads / n.kv_heads)) * n.dim;
  }
  std::int64_t v(std::int64_t b, std::int64_t s, std::int64_t h) const {
    return ((b * n.keys + s) * n.kv_heads + h / (n.heads / n.kv_heads)) * n.value_dim;
  }
};

bool sees(const AttentionSize& n, const AttentionRule& rule, std::int64_t b, std::int64_t t, std::int64_t s) {
  const std::int64_t position = rule.offset + t;
  if (rule.causal && s > position) return false;
  if (rule.window > 0 && s <= position - rule.window) return false;
  const auto chunk_of = [&](std::int64_t at) {
    std::int64_t first = rule.segments.empty() ? 0 : at;
    while (first > 0 && rule.segments[b * n.keys + first - 1] == rule.segments[b * n.keys + at]) --first;
    return first + (at - first) / rule.chunk * rule.chunk;
  };
  const auto same_chunk = [&] { return rule.chunk == 0 || chunk_of(s) == chunk_of(position); };
  if (rule.segments.empty()) return same_chunk();
  const auto own = rule.segments[b * n.keys + t], its = rule.segments[b * n.keys + s];
  return (its == own || its == own - ((own % rule.branch) + rule.branch) % rule.branch) && same_chunk();
}

struct Sum {
  double value = 0, terms = 0;  ///< Σ and Σ of absolute values
};
Sum dot(const double* x, const double* y, std::int64_t n) {
  Sum sum;
  for (std::int64_t i = 0; i < n; ++i) {
    sum.value += x[i] * y[i];
    sum.terms += std::abs(x[i] * y[i]);
  }
  return sum;
}

/// to += factor·x, and its bound grows by error·|x| plus the summation's share and `coarse` of the term.
void add(Bounded& to, std::int64_t at, const double* x, std::int64_t n, double factor, double error, double length, double coarse) {
  for (std::int64_t i = 0; i < n; ++i) {
    to.values[at + i] += factor * x[i];
    to.bounds[at + i] += (error + ((length + 20) * kU + coarse) * std::abs(factor)) * std::abs(x[i]);
  }
}

struct Score {
  std::int64_t key;
  double value, error, slope, slope_error;
};

std::vector<Score> scores_of_row(const AttentionSize& n, const AttentionRule& rule, std::int64_t b, std::int64_t t, std::int64_t h,
                                 const std::vector<double>& q, const std::vector<double>& k, double inner) {
  const Rows at{n};
  std::vector<Score> row;
  for (std::int64_t s = 0; s < n.keys; ++s) {
    if (!sees(n, rule, b, t, s)) continue;
    const Sum product = dot(&q[at.q(b, t, h)], &k[at.k(b, s, h)], n.dim);
    Score score{s, rule.scale * product.value, ((n.dim + 4) * kU + 2 * inner) * std::abs(rule.scale) * product.terms, 1, 0};
    if (rule.softcap > 0) {
      const double y = std::tanh(score.value / rule.softcap);
      score.slope = 1 - y * y;
      score.slope_error = 2 * (score.error / rule.softcap + 12 * kU);
      score.value = rule.softcap * y;
      score.error += 12 * kU * std::abs(score.value);
    }
    row.push_back(score);
  }
  return row;
}

void finish(Bounded& x, double unit, double least) {
  for (std::size_t i = 0; i < x.values.size(); ++i) x.bounds[i] = 1.1 * (x.bounds[i] + unit * std::abs(x.values[i])) + least;
}

}  // namespace

AttentionReference attention(const AttentionSize& n, const AttentionRule& rule, const std::vector<double>& q, const std::vector<double>& k,
                             const std::vector<double>& v, const std::vector<double>& cotangent, double unit, double inner) {
  const Rows at{n};
  const auto zeros = [](std::size_t size) { return Bounded{std::vector<double>(size), std::vector<double>(size)}; };
  AttentionReference r{zeros(cotangent.size()), zeros(q.size()), zeros(k.size()), zeros(v.size()), zeros(rule.sinks.size())};
  const double keys = n.keys, queries = n.queries * (n.heads / n.kv_heads);
  for (std::int64_t b = 0; b < n.batch; ++b) {
    for (std::int64_t t = 0; t < n.queries; ++t) {
      for (std::int64_t h = 0; h < n.heads; ++h) {
        const auto row = scores_of_row(n, rule, b, t, h, q, k, inner);
        double most = -std::numeric_limits<double>::infinity(), least = -most, error = 0, total = 0;
        for (const auto& s : row) {
          most = std::max(most, s.value);
          least = std::min(least, s.value);
          error = std::max(error, s.error);
        }
        if (!rule.sinks.empty()) {
          most = std::max(most, rule.sinks[h]);
          least = std::min(least, rule.sinks[h]);
          total += std::exp(rule.sinks[h] - most);
        }
        for (const auto& s : row) total += std::exp(s.value - most);
        const double log_sum = most + std::log(total);
        const double eta = 2 * error + (2 * (most - least) + keys + 20 + std::abs(log_sum)) * kU + inner;
        const std::int64_t o = at.out(b, t, h);
        double dp_terms = 0;
        for (const auto& s : row) {
          const double p = std::exp(s.value - log_sum);
          add(r.out, o, &v[at.v(b, s.key, h)], n.value_dim, p, p * eta, keys, 0);
          dp_terms += p * dot(&cotangent[o], &v[at.v(b, s.key, h)], n.value_dim).terms;
        }
        Sum delta = dot(&cotangent[o], &r.out.values[o], n.value_dim);
        double delta_error = (n.value_dim + 2) * kU * delta.terms;
        for (std::int64_t d = 0; d < n.value_dim; ++d) {
          delta_error += std::abs(cotangent[o + d]) * (r.out.bounds[o + d] + unit * std::abs(r.out.values[o + d]));
        }
        if (!rule.sinks.empty()) {
          const double p = std::exp(rule.sinks[h] - log_sum), rows = n.batch * n.queries, size = std::abs(delta.value) + delta_error;
          r.dsinks.values[h] -= p * delta.value;
          r.dsinks.bounds[h] += p * (size * (eta + (rows + 28) * kU + (rows + 3) * inner) + delta_error + 6 * inner * dp_terms);
        }
        for (const auto& s : row) {
          const double p = std::exp(s.value - log_sum);
          const Sum dp = dot(&cotangent[o], &v[at.v(b, s.key, h)], n.value_dim);
          const double weight = p * std::abs(rule.scale), difference = dp.value - delta.value, ds = p * rule.scale * s.slope * difference;
          const double ds_error = std::abs(ds) * (eta + 8 * kU) + weight * s.slope * ((n.value_dim + 2) * kU * dp.terms + delta_error) +
                                  weight * std::abs(difference) * s.slope_error + weight * inner * (4 * dp.terms + 6 * dp_terms);
          add(r.dq, at.q(b, t, h), &k[at.k(b, s.key, h)], n.dim, ds, ds_error, keys, 3 * inner);
          add(r.dk, at.k(b, s.key, h), &q[at.q(b, t, h)], n.dim, ds, ds_error, queries, 3 * inner);
          add(r.dv, at.v(b, s.key, h), &cotangent[o], n.value_dim, p, p * eta, queries, 3 * inner);
        }
      }
    }
  }
  // Results below the smallest normal number are rounded to zero or to its neighbours: in f16, which of 16 bits alone has a unit of 2^-11, by
  // 2^-25, and so are dP and dS where they are kept in it, of which each key (or query) has one.
  const double half = unit == 0x1p-11 ? 0x1p-25 : std::numeric_limits<float>::min(), steps = inner > 0 ? 4 * (keys + queries) : 0;
  for (auto* x : {&r.out, &r.dq, &r.dk, &r.dv, &r.dsinks}) finish(*x, unit, half * (1 + steps));
  return r;
}

}  // namespace lquant::oracle
