#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "codec/affine_rule.h"
#include "kernels/storage.h"

// The search for one group's scale and bias. Everything is judged by the error that will be there in the end: ŵ is made from the
// scale and bias as stored, rounded as dequantization rounds. One pass over the group gives a candidate's error and the moments of
// its codes, from which least squares gives the next candidate: Lloyd's alternation (1982) between codes for fixed values and values
// for fixed codes, with the values on a line.
namespace lquant::codec {

/// One group: n weights (a multiple of 32), their importances, and the sums that every least-squares fit needs.
struct Group {
  const float* w;
  const float* h;
  int n;
  float top;  ///< largest code
  Range range;
  double sum_h, sum_hw;
};

/// A candidate with Σ h·(w − ŵ)² and, for its codes q, Σ h·q, Σ h·q², Σ h·q·w.
struct Candidate {
  ScaleBias at;
  float error;
  float hq, hqq, hqw;
};

/// What dequantization makes of code q.
template <class S>
LQUANT_INLINE float value_of(float q, ScaleBias at) {
  return kernels::rounded<S>(kernels::rounded<S>(at.scale * q) + at.bias);
}

template <class S>
LQUANT_INLINE ScaleBias stored(ScaleBias at) {
  return {kernels::rounded<S>(at.scale), kernels::rounded<S>(at.bias)};
}

/// Σ h·(w − ŵ)² of given codes.
template <class S>
LQUANT_INLINE double error_of(const Group& g, ScaleBias at, const std::uint8_t* codes) {
  double error = 0;
  for (int j = 0; j < g.n; ++j) {
    const double d = static_cast<double>(g.w[j]) - value_of<S>(static_cast<float>(codes[j]), at);
    error += g.h[j] * d * d;
  }
  return error;
}

/// Codes of the nearest values: dividing and rounding may miss them by one where storage rounds ŵ coarsely.
template <class S>
LQUANT_INLINE void nearest_codes(const float* w, int n, ScaleBias at, float top, std::uint8_t* codes) {
  for (int j = 0; j < n; ++j) {
    float q = std::rint((w[j] - at.bias) / at.scale);
    q = q > 0 ? q : 0;
    q = q < top ? q : top;
    const float below = q > 0 ? q - 1 : q, above = q < top ? q + 1 : q;
    const float here = std::abs(w[j] - value_of<S>(q, at)), down = std::abs(w[j] - value_of<S>(below, at)),
                up = std::abs(w[j] - value_of<S>(above, at));
    q = up < here && up < down ? above : (down < here ? below : q);
    codes[j] = static_cast<std::uint8_t>(static_cast<std::int32_t>(q));
  }
}

template <class S>
LQUANT_INLINE Candidate evaluate(const Group& g, ScaleBias at) {
  const float inverse = 1.0f / at.scale, top = g.top;
  float error = 0, hq = 0, hqq = 0, hqw = 0;
#pragma omp simd reduction(+ : error, hq, hqq, hqw)
  for (int j = 0; j < g.n; ++j) {
    float q = std::rint((g.w[j] - at.bias) * inverse);
    q = q > 0 ? q : 0;
    q = q < top ? q : top;
    const float d = g.w[j] - value_of<S>(q, at), t = g.h[j] * q;
    error += g.h[j] * d * d;
    hq += t;
    hqq += t * q;
    hqw += t * g.w[j];
  }
  return {at, error, hq, hqq, hqw};
}

template <class S>
LQUANT_INLINE bool try_candidate(const Group& g, ScaleBias at, Candidate& best) {
  at = stored<S>(at);
  if (!(std::abs(at.scale) > 0)) return false;
  const auto c = evaluate<S>(g, at);
  if (!(c.error < best.error)) return false;
  best = c;
  return true;
}

/// The best bias for the codes of c and a scale that storage has already rounded.
LQUANT_INLINE float bias_for(const Group& g, const Candidate& c, float scale) {
  return static_cast<float>((g.sum_hw - scale * static_cast<double>(c.hq)) / g.sum_h);
}

/// Weighted least squares on the codes of `best`, then codes anew, while that helps.
template <class S>
LQUANT_INLINE void refit(const Group& g, int rounds, Candidate& best) {
  for (int i = 0; i < rounds; ++i) {
    const double hq = best.hq, hqq = best.hqq, determinant = hqq * g.sum_h - hq * hq;
    // All codes (that matter) alike: no slope to fit. The sums carry f32 rounding of about n·2^−24 relative.
    if (!(determinant > 1e-5 * hqq * g.sum_h)) return;
    const float scale = kernels::rounded<S>(static_cast<float>((g.sum_h * static_cast<double>(best.hqw) - hq * g.sum_hw) / determinant));
    if (!try_candidate<S>(g, {scale, bias_for(g, best, scale)}, best)) return;
  }
}

/// x moved by `steps` last places of a 16-bit storage.
template <class S>
LQUANT_INLINE float moved(float x, int steps) {
  return S::load(static_cast<typename S::Bits>(S::store(x) + steps));
}

/// Storage of 16 bits is coarse beside the step of 5 or more bits (a bf16 scale of 8-bit codes errs by up to half a step at the far
/// end), so the neighbours of scale and bias are tried as well.
template <class S>
LQUANT_INLINE void polish(const Group& g, int rounds, Candidate& best) {
  if constexpr (!std::is_same_v<S, kernels::Float32>) {
    for (int i = 0; i < rounds; ++i) {
      bool better = false;
      for (int neighbour = 0; neighbour < 4; ++neighbour) {  // one call for the four, for the compiler's sake: it is inlined
        const int step = neighbour % 2 ? 1 : -1;
        const bool of_scale = neighbour < 2;
        const float scale = of_scale ? moved<S>(best.at.scale, step) : best.at.scale;
        better |= try_candidate<S>(g, {scale, of_scale ? bias_for(g, best, scale) : moved<S>(best.at.bias, step)}, best);
      }
      if (!better) return;
    }
  }
}

/// How much is tried.
struct Effort {
  int steps;             ///< positions of either edge, from its own to `least` of it, all pairs of them
  float least;           ///< where an edge is drawn in to, as a share of itself
  int kept;              ///< pairs, the best as they stand, that are refitted
  int refits = 2;        ///< of each of them
  int final_refits = 4;  ///< of the best, in either orientation
  int polish = 4;
};
constexpr int kMostKept = 64;

/// Measured on Gaussian and Student-t weights, plain and with log-normal importances (docs/methods/rtn.md): refitting every pair lowers the error by
/// less than 0.2 % at 3 and 4 bits, by 2 % at 2, where refits move the edges far. With 5 bits and more, edges that are drawn in below 0.8 never win,
/// and the finer grid above that is the better one.
constexpr Effort effort_for(int bits) {
  if (bits <= 2) return {8, 0.5f, kMostKept};
  if (bits <= 4) return {8, 0.5f, 8};
  return {4, 0.8f, 4};
}

/// The `most` best pairs, sorted; ties in the order of their arrival.
class Shortlist {
 public:
  explicit Shortlist(int most) : most_(most) {}
  LQUANT_INLINE void offer(const Candidate& c) {
    if (count_ == most_ && !(c.error < best_[most_ - 1].error)) return;
    int i = count_ < most_ ? count_++ : most_ - 1;
    for (; i > 0 && c.error < best_[i - 1].error; --i) best_[i] = best_[i - 1];
    best_[i] = c;
  }
  Candidate* begin() { return best_; }
  Candidate* end() { return best_ + count_; }

 private:
  int most_, count_ = 0;
  Candidate best_[kMostKept];
};

/// The best scale and bias found, starting from the candidate `best`, which is never made worse.
template <class S>
LQUANT_INLINE void search_group(const Group& g, const Effort& e, Candidate& best) {
  const float draw = (1 - e.least) / static_cast<float>(e.steps);
  Shortlist list(e.kept);
  for (int low = 0; low < e.steps; ++low) {
    for (int high = 0; high < e.steps; ++high) {
      const float min = g.range.min * (1 - draw * static_cast<float>(low)), max = g.range.max * (1 - draw * static_cast<float>(high));
      const auto at = stored<S>({(max - min) / g.top, min});
      if (std::abs(at.scale) > 0) list.offer(evaluate<S>(g, at));
    }
  }
  for (auto& candidate : list) {
    refit<S>(g, e.refits, candidate);
    if (candidate.error < best.error) best = candidate;
  }
  // The same values counted from the other edge: equal but for the rounding of scale and bias, which decides at 8 bits.
  const auto turned_at = stored<S>({-best.at.scale, best.at.bias + best.at.scale * g.top});
  auto turned = std::abs(turned_at.scale) > 0 ? evaluate<S>(g, turned_at) : best;
  for (auto* candidate : {&best, &turned}) {
    refit<S>(g, e.final_refits, *candidate);
    polish<S>(g, e.polish, *candidate);
  }
  if (turned.error < best.error) best = turned;
}

}  // namespace lquant::codec
