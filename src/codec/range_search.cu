// Device code of range_search_gpu.cpp: the search of group_search.h, a warp for each group.
//
// What a candidate costs is a walk over the group's weights, which lie in shared memory. While there are many candidates
// every lane walks for its own; the fewer are left, the more lanes share a walk and add up by shuffles. All lanes of a
// warp run the same loops, whatever their candidates do, since all of them take part in every shuffle.
namespace lquant {

constexpr int kWarp = 32;
constexpr int kMostKept = 64;

struct ScaleBias {
  float scale, bias;
};

// A candidate with Σ h (w − ŵ)² and, for its codes q, Σ h q, Σ h q², Σ h q w.
struct Candidate {
  ScaleBias at;
  float error, hq, hqq, hqw;
};

// What a warp works on: n weights, their importances, and room for the candidates that are left.
struct Group {
  float w[128], h[128];
  Candidate kept[kMostKept];
  unsigned char codes[128];
  float top;
  int n;
  double sum_h, sum_hw;
};

template <class S>
__device__ float rounded(float x) {
  return static_cast<float>(static_cast<S>(x));
}

template <class S>
__device__ ScaleBias stored(float scale, float bias) {
  return {rounded<S>(scale), rounded<S>(bias)};
}

// No fused multiply-add: dequantization rounds the product and then the sum.
template <class S>
__device__ float value_of(float q, ScaleBias at) {
  return rounded<S>(__fadd_rn(rounded<S>(__fmul_rn(at.scale, q)), at.bias));
}

template <class T>
__device__ T sum_over(int lanes, T x) {
  for (int other = lanes / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

__device__ float clamped(float q, float top) {
  q = q > 0 ? q : 0;  // NaN too
  return q < top ? q : top;
}

// A candidate that stands for nothing: no other is worse.
__device__ Candidate none() { return {{0, 0}, __uint_as_float(0x7f800000u), 0, 0, 0}; }

// The candidate's sums, made by `lanes` neighbouring lanes together.
template <class S>
__device__ __noinline__ Candidate evaluated(const Group& g, ScaleBias at, int lanes, int lane) {
  const float inverse = 1.0f / at.scale;
  float error = 0, hq = 0, hqq = 0, hqw = 0;
#pragma unroll 4
  for (int j = lane % lanes; j < g.n; j += lanes) {
    const float w = g.w[j], h = g.h[j];
    const float q = clamped(rintf((w - at.bias) * inverse), g.top);
    const float d = w - value_of<S>(q, at), t = h * q;
    error += h * d * d;
    hq += t;
    hqq += t * q;
    hqw += t * w;
  }
  const Candidate c = {at, sum_over(lanes, error), sum_over(lanes, hq), sum_over(lanes, hqq), sum_over(lanes, hqw)};
  return fabsf(at.scale) > 0 && c.error == c.error ? c : none();
}

__device__ float bias_for(const Group& g, const Candidate& c, float scale) {
  return static_cast<float>((g.sum_hw - scale * static_cast<double>(c.hq)) / g.sum_h);
}

// Weighted least squares on the codes of `best`, then codes anew, while that helps; `rounds` times at most.
template <class S>
__device__ __noinline__ Candidate refitted(const Group& g, Candidate best, int rounds, int lanes, int lane) {
  bool going = true;
#pragma unroll 1
  for (int i = 0; i < rounds; ++i) {
    const double hq = best.hq, hqq = best.hqq, determinant = hqq * g.sum_h - hq * hq;
    // All codes (that matter) alike: no slope to fit. The sums carry f32 rounding of about n·2^−24 relative.
    going = going && determinant > 1e-5 * hqq * g.sum_h;
    if (!__any_sync(0xffffffffu, going)) return best;
    const float scale = rounded<S>(static_cast<float>((g.sum_h * static_cast<double>(best.hqw) - hq * g.sum_hw) / determinant));
    const Candidate c = evaluated<S>(g, stored<S>(scale, bias_for(g, best, scale)), lanes, lane);
    going = going && c.error < best.error;
    if (going) best = c;
  }
  return best;
}

template <class S>
__device__ float moved(float x, int steps) {
  S s(x);
  s.bits = static_cast<unsigned short>(s.bits + steps);
  return static_cast<float>(s);
}

// The neighbours of scale and bias in a storage of 16 bits.
template <class S>
__device__ Candidate polished(const Group& g, Candidate best, int rounds, int lanes, int lane) {
  if constexpr (sizeof(S) == 2) {
    bool going = true;
    for (int i = 0; i < rounds; ++i) {
      if (!__any_sync(0xffffffffu, going)) return best;
      bool better = false;
#pragma unroll 1
      for (int neighbour = 0; neighbour < 4; ++neighbour) {
        const int step = neighbour % 2 ? 1 : -1;
        const bool of_scale = neighbour < 2;
        const float scale = of_scale ? moved<S>(best.at.scale, step) : best.at.scale;
        const float bias = of_scale ? bias_for(g, best, scale) : moved<S>(best.at.bias, step);
        const Candidate c = evaluated<S>(g, stored<S>(scale, bias), lanes, lane);
        if (going && c.error < best.error) best = c, better = true;
      }
      going = better;
    }
  }
  return best;
}

// Of all lanes' candidates the one with the least error, and of several the one with the least `turn`.
__device__ __noinline__ Candidate least(Candidate c, int turn) {
  for (int other = kWarp / 2; other > 0; other /= 2) {
    const Candidate o = {{__shfl_xor_sync(0xffffffffu, c.at.scale, other), __shfl_xor_sync(0xffffffffu, c.at.bias, other)},
                         __shfl_xor_sync(0xffffffffu, c.error, other),
                         __shfl_xor_sync(0xffffffffu, c.hq, other),
                         __shfl_xor_sync(0xffffffffu, c.hqq, other),
                         __shfl_xor_sync(0xffffffffu, c.hqw, other)};
    const int at = __shfl_xor_sync(0xffffffffu, turn, other);
    if (o.error < c.error || (o.error == c.error && at < turn)) c = o, turn = at;
  }
  return c;
}

// The edges of the group drawn in by steps, all pairs of them; the `kept` best go to g.kept, in order.
template <class S, int steps, int kept>
__device__ void pairs(Group& g, float min, float max, float draw, int lane) {
  constexpr int count = steps * steps, lanes = count < kWarp ? kWarp / count : 1, each = count * lanes / kWarp;
  Candidate own[each];
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int pair = lane / lanes + i * (kWarp / lanes);
    const float low = min * (1 - draw * static_cast<float>(pair / steps)), high = max * (1 - draw * static_cast<float>(pair % steps));
    own[i] = evaluated<S>(g, stored<S>((high - low) / g.top, low), lanes, lane);
    if (lane % lanes == 0) g.kept[pair] = own[i];
  }
  __syncwarp();
  int place[each];
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int pair = lane / lanes + i * (kWarp / lanes);
    place[i] = 0;
#pragma unroll 1
    for (int other = 0; other < count; ++other) {
      const float error = g.kept[other].error;
      place[i] += error < own[i].error || (error == own[i].error && other < pair);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < each; ++i)
    if (lane % lanes == 0 && place[i] < kept) g.kept[place[i]] = own[i];
  __syncwarp();
}

// The best of the pairs, refitted, unless `best` is better.
template <class S, int steps, int kept>
__device__ Candidate of_pairs(Group& g, float min, float max, float least_edge, Candidate best, int lane) {
  constexpr int lanes = kept < kWarp ? kWarp / kept : 1, each = kept * lanes / kWarp;
  pairs<S, steps, kept>(g, min, max, (1 - least_edge) / steps, lane);
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int turn = lane / lanes + i * (kWarp / lanes);
    const Candidate found = least(refitted<S>(g, g.kept[turn], 2, lanes, lane), turn);
    if (found.error < best.error) best = found;
  }
  return best;
}

// The best scale and bias found, from `best` on, which is never made worse. How much is tried: Effort in group_search.h.
template <class S>
__device__ Candidate searched(Group& g, int bits, float min, float max, Candidate best, int lane) {
  if (bits <= 2)
    best = of_pairs<S, 8, kMostKept>(g, min, max, 0.5f, best, lane);
  else if (bits <= 4)
    best = of_pairs<S, 8, 8>(g, min, max, 0.5f, best, lane);
  else
    best = of_pairs<S, 4, 4>(g, min, max, 0.8f, best, lane);
  // The same values counted from the other edge, by the warp's upper half: equal but for the rounding of scale and bias, which decides at 8 bits.
  constexpr int half = kWarp / 2;
  const ScaleBias turned = stored<S>(-best.at.scale, best.at.bias + best.at.scale * g.top);
  const Candidate other = evaluated<S>(g, turned, half, lane);
  const Candidate c = lane < half || !(fabsf(turned.scale) > 0) ? best : other;
  return least(polished<S>(g, refitted<S>(g, c, 4, half, lane), 4, half, lane), lane);
}

// Codes of the nearest values: dividing and rounding may miss them by one where storage rounds ŵ coarsely.
template <class S>
__device__ float nearest(float w, ScaleBias at, float top) {
  const float q = clamped(rintf((w - at.bias) / at.scale), top);
  const float below = q > 0 ? q - 1 : q, above = q < top ? q + 1 : q;
  const float here = fabsf(w - value_of<S>(q, at)), down = fabsf(w - value_of<S>(below, at)), up = fabsf(w - value_of<S>(above, at));
  return up < here && up < down ? above : (down < here ? below : q);
}

// Σ h (w − ŵ)² of the codes that `code` says.
template <class S, class Code>
__device__ double error_of(const Group& g, ScaleBias at, int lane, const Code& code) {
  double error = 0;
#pragma unroll 1
  for (int j = lane; j < g.n; j += kWarp) {
    const double d = static_cast<double>(g.w[j]) - value_of<S>(code(g.w[j]), at);
    error += g.h[j] * d * d;
  }
  return sum_over(kWarp, error);
}

__device__ float least_of_warp(float x) {
  for (int other = kWarp / 2; other > 0; other /= 2) x = fminf(x, __shfl_xor_sync(0xffffffffu, x, other));
  return x;
}

// Codes one behind the other, the first in the lowest bits; a lane writes a word.
__device__ void pack(const unsigned char* codes, int n, int bits, int lane, unsigned int* to) {
  if (lane >= n * bits / 32) return;
  unsigned int word = 0;
  for (int j = 32 * lane / bits; j < n && j * bits < 32 * (lane + 1); ++j) {
    const int at = j * bits - 32 * lane;
    word |= at >= 0 ? static_cast<unsigned int>(codes[j]) << at : static_cast<unsigned int>(codes[j]) >> -at;
  }
  to[lane] = word;
}

// MLX's rule for a group's edges, not yet rounded (codec/affine_rule.h).
__device__ ScaleBias plain_rule(float min, float max, float top) {
  const bool low_edge = fabsf(min) > fabsf(max);
  const float apart = (max - min) / top, step = apart < 1e-7f ? 1e-7f : apart;
  const float scale = low_edge ? step : -step, edge = low_edge ? min : max;
  const float steps = rintf(edge / scale);
  if (steps != 0) return {edge / steps, edge};
  return {scale, 0};
}

// w: rows of `columns` weights, `groups` groups of n (32, 64 or 128) in all; h: a row of importances for every `share` rows of w, of which `unit` is a power of two.
// Out: the codes, n·bits/32 words a group, scales, biases, and the errors of the plain rule and of these, multiplied by `unit`.
template <class W, class S>
__device__ void range_search(const W* w, const float* h, int n, int bits, int columns, int share, float unit, int groups, unsigned int* codes,
                             S* scales, S* biases, float* plain_error, float* error) {
  __shared__ Group all[4];
  Group& g = all[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp, in_row = columns / n, warps = blockDim.x / kWarp;
  const float top = static_cast<float>((1 << bits) - 1), infinite = __uint_as_float(0x7f800000u);
  for (long i = static_cast<long>(blockIdx.x) * warps + threadIdx.x / kWarp; i < groups; i += static_cast<long>(gridDim.x) * warps) {
    const long row = i / in_row;
    const float* importance = h + row / share * columns + i % in_row * n;
    double sum_h = 0, sum_hw = 0;
    float min = infinite, max = infinite;  // of w and of −w
    for (int j = lane; j < n; j += kWarp) {
      const float weight = static_cast<float>(w[i * n + j]), own = importance[j] * unit;
      g.w[j] = weight;
      g.h[j] = own;
      sum_h += own;
      sum_hw += static_cast<double>(own) * weight;
      min = fminf(min, weight);  // a NaN is passed over
      max = fminf(max, -weight);
    }
    g.top = top;
    g.n = n;
    g.sum_h = sum_over(kWarp, sum_h);
    g.sum_hw = sum_over(kWarp, sum_hw);
    min = least_of_warp(min);
    max = -least_of_warp(max);
    __syncwarp();
    const ScaleBias rule = plain_rule(min, max, top), plain = stored<S>(rule.scale, rule.bias);
    const auto plain_code = [&](float x) { return clamped(rintf((x - rule.bias) / rule.scale), top); };
    const double before = error_of<S>(g, plain, lane, plain_code);
    double after = before;
    ScaleBias at = plain;
    bool keeps = true;
    // Else nothing to gain, or (NaN) nothing that can be judged.
    if (before > 0 && g.sum_h > 0 && fabsf(plain.scale) > 0) {
      const Candidate best = searched<S>(g, bits, min, max, evaluated<S>(g, plain, kWarp, lane), lane);
      const double found = error_of<S>(g, best.at, lane, [&](float x) { return nearest<S>(x, best.at, top); });
      if (found < before) after = found, at = best.at, keeps = false;
    }
    for (int j = lane; j < n; j += kWarp) g.codes[j] = static_cast<unsigned char>(keeps ? plain_code(g.w[j]) : nearest<S>(g.w[j], at, top));
    __syncwarp();
    pack(g.codes, n, bits, lane, codes + i * (n * bits / 32));
    if (lane == 0) scales[i] = static_cast<S>(at.scale), biases[i] = static_cast<S>(at.bias), plain_error[i] = before, error[i] = after;
    __syncwarp();
  }
}

// The nearest codes for given scales and biases, a warp a group.
template <class W, class S>
__device__ void nearest_codes(const W* w, const S* scales, const S* biases, int n, int bits, int groups, unsigned int* codes) {
  __shared__ unsigned char all[4][128];
  unsigned char* own = all[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  for (long i = static_cast<long>(blockIdx.x) * warps + threadIdx.x / kWarp; i < groups; i += static_cast<long>(gridDim.x) * warps) {
    const ScaleBias at = {static_cast<float>(scales[i]), static_cast<float>(biases[i])};
    for (int j = lane; j < n; j += kWarp)
      own[j] = static_cast<unsigned char>(nearest<S>(static_cast<float>(w[i * n + j]), at, static_cast<float>((1 << bits) - 1)));
    __syncwarp();
    pack(own, n, bits, lane, codes + i * (n * bits / 32));
    __syncwarp();
  }
}

}  // namespace lquant
