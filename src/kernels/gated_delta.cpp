// Within a chunk of C tokens the rule is a system of equations: with D_ij the decay from token j to token i, what each token writes is
//   V′ = (I + A)⁻¹ (β V − β D_i0 K S₀ᵀ),  A_ij = β_i D_ij k_i·k_j for j < i,
// so that Y = D_i0 Q S₀ᵀ + (D ⊙ Q Kᵀ) V′ and S = D_C0 S₀ + Σ_j D_Cj v′_j k_jᵀ (arXiv 2406.06484, 2412.06464). All but S₀ is made of all chunks at
// once; one chunk after the other has three products with the state. Texts are kept apart by masks: a logarithm of 0 is −∞, and −∞ − −∞ no number.
//
// Decays of each key channel stand inside the products, A_ij = β_i Σ_d k_id D_ijd k_jd. Taking them apart, into a factor of k_i and one of k_j, would
// overflow where they are strong: here all D_ijd of a chunk are made, so chunks are shorter.
#include "kernels/gated_delta.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/chunk_carry.h"
#include "kernels/chunks.h"
#include "kernels/delta_chunks.h"
#include "kernels/gated_delta_paths.h"
#include "kernels/half.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

// As fla's and transformers': long enough for the products, short enough for the C² of a token.
constexpr int kChunk = 64;
// Decays by channel take so many numbers of each key.
constexpr int kChunkOfChannels = 16;

void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::invalid_argument("[kernels] gated_delta: " + sentence);
}

void check(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay, const mx::array& beta,
           const std::optional<mx::array>& segments, const std::optional<mx::array>& state) {
  require(q.ndim() == 4 && v.ndim() == 4 && q.shape() == k.shape(), "q and k have one shape, and v 4 dimensions: [batch, tokens, heads, features]");
  require(q.dtype() == k.dtype() && q.dtype() == v.dtype() && is_float(q.dtype()), "q, k and v are float32, bfloat16 or float16, of one dtype");
  require(v.shape(0) == q.shape(0) && v.shape(1) == q.shape(1), "q and v have as many rows and tokens as each other");
  require(q.shape(2) > 0 && v.shape(2) % q.shape(2) == 0, fmt::format("{} value heads do not divide among {} key heads", v.shape(2), q.shape(2)));
  const mx::Shape by_head{v.shape(0), v.shape(1), v.shape(2)};
  const mx::Shape by_channel{v.shape(0), v.shape(1), v.shape(2), q.shape(3)};
  require(beta.shape() == by_head && is_float(beta.dtype()), "betas are float [batch, tokens, heads]");
  require((log_decay.shape() == by_head || log_decay.shape() == by_channel) && is_float(log_decay.dtype()),
          "decays are float [batch, tokens, heads] or [batch, tokens, heads, key features]");
  if (segments)
    require(segments->dtype() == mx::int32 && segments->shape() == mx::Shape{q.shape(0), q.shape(1)}, "segments are int32 [batch, tokens]");
  if (state)
    require(!segments && state->dtype() == mx::float32 && state->shape() == mx::Shape{v.shape(0), v.shape(2), v.shape(3), q.shape(3)},
            "a state is float32 [batch, heads, value features, key features], and not together with segments");
}

mx::array part(const mx::array& x, int axis, int first, int count) {
  auto start = mx::Shape(x.ndim(), 0), stop = x.shape();
  start[axis] = first;
  stop[axis] = first + count;
  return mx::slice(x, start, stop);
}

}  // namespace

std::pair<mx::array, mx::array> gated_delta_mlx(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                                const mx::array& beta, const std::optional<mx::array>& segments,
                                                const std::optional<mx::array>& state) {
  const int batch = q.shape(0), tokens = q.shape(1), key_heads = q.shape(2), value_heads = v.shape(2);
  const bool by_channel = log_decay.ndim() == 4;
  const int keys = q.shape(3), values = v.shape(3), length = std::min(tokens, by_channel ? kChunkOfChannels : kChunk);
  const int chunks = (tokens + length - 1) / length;
  // [B, T, heads, …] → [B, Hk, heads / Hk, N, C, …]; the tokens that fill the last chunk have k = 0, β = 0 and no decay, and change nothing.
  const auto in_chunks = [&](const mx::array& x) {
    auto padded = mx::astype(x, mx::float32);
    if (chunks * length > tokens) padded = mx::pad(padded, std::vector<int>{1}, {0}, {chunks * length - tokens});
    auto shape = x.shape();
    shape.erase(shape.begin() + 1, shape.begin() + 3);
    shape.insert(shape.begin() + 1, {chunks, length, key_heads, x.shape(2) / key_heads});
    std::vector<int> axes = {0, 3, 4, 1, 2};
    for (int axis = 5; axis < static_cast<int>(shape.size()); ++axis) axes.push_back(axis);
    return mx::contiguous(mx::transpose(mx::reshape(padded, shape), axes));
  };
  const auto queries = in_chunks(q), all_keys = in_chunks(k), strengths = mx::expand_dims(in_chunks(beta), -1);
  const auto logs = in_chunks(by_channel ? log_decay : mx::expand_dims(log_decay, -1));  // [B, Hk, heads / Hk, N, C, Dk or 1]
  auto [decay, from_front] = chunk_decays(logs);
  if (segments) {
    const auto masks = chunk_masks(segments, chunks, length);
    const auto by_chunk = [](const mx::array& mask) {
      return mx::expand_dims(mx::moveaxis(mask, 1, 3), -1);
    };  // [B, N, 1, 1, …] → [B, 1, 1, N, …, 1]
    decay = mx::multiply(decay, mx::astype(by_chunk(masks.within), mx::float32));
    from_front = mx::multiply(from_front, by_chunk(*masks.carried));
  }
  const auto to_end = mx::squeeze(part(decay, -3 + decay.ndim(), length - 1, 1), -3),
             kept = mx::swapaxes(part(from_front, -2 + from_front.ndim(), length - 1, 1), -1, -2);

  // Σ_d x_id D_ijd k_jd.
  const auto weighted = mx::multiply(all_keys, strengths), across = mx::swapaxes(all_keys, -1, -2);
  const auto decayed = by_channel ? mx::multiply(decay, mx::expand_dims(all_keys, -3)) : mx::squeeze(decay, -1);
  const auto against_keys = [&](const mx::array& x) {
    return by_channel ? mx::squeeze(mx::matmul(decayed, mx::expand_dims(x, -1)), -1) : mx::multiply(mx::matmul(x, across), decayed);
  };
  const auto solved = unit_inverse(mx::multiply(against_keys(weighted), lower_mask(length, /*diagonal=*/false)));
  const auto written = mx::matmul(solved, mx::multiply(in_chunks(v), strengths));
  const auto read = mx::matmul(solved, mx::multiply(weighted, from_front));
  const auto seen = against_keys(queries);
  const auto asked = mx::multiply(queries, from_front), told = mx::multiply(all_keys, to_end);

  // One after the other: the state, and what is written when it is known. [G, …] for G = B · Hk · heads / Hk.
  const auto together = [](const mx::array& x) { return mx::flatten(x, 0, 2); };
  const int groups = batch * value_heads;
  const auto memory = state ? mx::swapaxes(mx::flatten(*state, 0, 1), -1, -2) : mx::zeros({groups, keys, values});  // Sᵀ
  const auto carried = carry_chunks(together(written), together(read), together(told), together(kept), memory);
  const auto results = mx::add(mx::matmul(together(asked), carried.states), mx::matmul(together(seen), carried.corrected));
  // [G, N, C, Dv] → [B, T, Hv, Dv]
  const auto all = part(mx::reshape(results, {batch, value_heads, chunks * length, values}), 2, 0, tokens);
  return {mx::astype(mx::swapaxes(all, 1, 2), q.dtype()), mx::unflatten(mx::swapaxes(carried.last, -1, -2), 0, {batch, value_heads})};
}

std::pair<mx::array, mx::array> gated_delta(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& log_decay,
                                            const mx::array& beta, const std::optional<mx::array>& segments, const std::optional<mx::array>& state) {
  check(q, k, v, log_decay, beta, segments, state);
  if (q.size() == 0 || v.size() == 0)
    return {mx::zeros(v.shape(), q.dtype()), state.value_or(mx::zeros({v.shape(0), v.shape(2), v.shape(3), q.shape(3)}))};
#ifdef LQUANT_ONEDNN
  if (cpu_kernels() && log_decay.ndim() == 4) return gated_delta_channels_cpu(q, k, v, log_decay, beta, segments, state);
  if (cpu_kernels() && q.dtype() != mx::float16) return gated_delta_cpu(q, k, v, log_decay, beta, segments, state);
  if (cpu_kernels()) {  // its products are of f32 and bf16
    const auto f32 = [](const mx::array& x) { return mx::astype(x, mx::float32); };
    auto [y, last] = gated_delta_cpu(f32(q), f32(k), f32(v), log_decay, beta, segments, state);
    return {mx::astype(y, mx::float16), last};
  }
#endif
  return gated_delta_mlx(q, k, v, log_decay, beta, segments, state);
}

}  // namespace lquant::kernels
