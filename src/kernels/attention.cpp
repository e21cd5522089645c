// On the CPU attention has kernels of its own (attention_cpu.cpp). Elsewhere MLX's fused op serves, since it takes causality and
// arbitrary boolean masks and sinks; only softcap, which it does not know, is spelled out. A causal query sees the keys up to
// offset + t, and MLX aligns its causal mask to the last key, so cutting the keys at offset + T makes the two agree.
#include "kernels/attention.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/attention_paths.h"
#include "kernels/half.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::invalid_argument("[kernels] attention: " + sentence);
}

void check(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args, const std::optional<mx::array>& segments,
           const std::optional<mx::array>& sinks) {
  require(q.ndim() == 4 && k.ndim() == 4 && v.ndim() == 4, "q, k and v have 4 dimensions, [batch, tokens, heads, features]");
  require(q.dtype() == k.dtype() && q.dtype() == v.dtype(), "q, k and v have one dtype");
  require(is_float(q.dtype()), "float32, bfloat16 or float16 is needed");
  require(k.shape(0) == q.shape(0) && v.shape(0) == q.shape(0), "q, k and v have one batch size");
  require(k.shape(1) == v.shape(1) && k.shape(2) == v.shape(2), "k and v have as many tokens and heads as each other");
  require(q.shape(3) == k.shape(3) && q.shape(3) > 0, fmt::format("q has {} features, k {}", q.shape(3), k.shape(3)));
  require(k.shape(2) > 0 && q.shape(2) % k.shape(2) == 0, fmt::format("{} query heads do not divide among {} key heads", q.shape(2), k.shape(2)));
  require(args.window >= 0 && args.offset >= 0 && args.softcap >= 0 && args.chunk >= 0, "window, chunk, offset and softcap are not negative");
  require(k.shape(1) > 0 || q.shape(1) == 0, "there are queries but no keys");
  if (args.causal || args.window > 0 || args.chunk > 0) {
    require(std::int64_t{args.offset} + q.shape(1) <= k.shape(1),
            fmt::format("queries {} … {} reach beyond {} keys", args.offset, std::int64_t{args.offset} + q.shape(1) - 1, k.shape(1)));
  }
  if (segments) {
    require(segments->dtype() == mx::int32 && segments->shape() == mx::Shape{k.shape(0), k.shape(1)}, "segments are int32 [batch, keys]");
    require(q.shape(1) == k.shape(1), "segments need as many queries as keys");
    require(args.chunk == 0 || args.offset == 0, "chunks of segments need offset 0");
  }
  if (args.branch_bits != 0) {
    require(args.branch_bits > 0 && args.branch_bits <= 16, "branch_bits is 0 … 16");
    require(segments && args.window == 0 && args.chunk == 0, "branches need segments and exclude a window and chunks");
  }
  if (sinks) require(is_float(sinks->dtype()) && sinks->shape() == mx::Shape{q.shape(2)}, "sinks are float [query heads]");
}

/// Where the chunk of each position begins, int32 [batch or 1, positions]: counted from 0, or from the first token of the segment.
mx::array chunk_begins(int keys, int chunk, const std::optional<mx::array>& segments) {
  const auto position = mx::expand_dims(mx::arange(0, keys, 1), 0);
  if (!segments) return mx::subtract(position, mx::remainder(position, mx::array(chunk)));
  const int batch = segments->shape(0);
  const auto before = mx::slice(*segments, {0, 0}, {batch, keys - 1}), own = mx::slice(*segments, {0, 1}, {batch, keys});
  const auto begins = mx::concatenate({mx::ones({batch, 1}, mx::bool_), mx::not_equal(before, own)}, 1);
  const auto first = mx::cummax(mx::where(begins, position, mx::array(0)), 1);
  return mx::subtract(position, mx::remainder(mx::subtract(position, first), mx::array(chunk)));
}

/// softmax(softcap(q·kᵀ·scale)) · v, a sink among the scores, with heads before tokens: q [B, H, T, D], k and v [B, Hkv, S, …].
mx::array capped(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args, const std::optional<mx::array>& mask,
                 const std::optional<mx::array>& sinks) {
  const int group = q.shape(1) / k.shape(1);
  const auto in_groups = mx::reshape(mx::astype(q, mx::float32), {q.shape(0), k.shape(1), group, q.shape(2), q.shape(3)});
  const auto keys = mx::expand_dims(mx::astype(k, mx::float32), 2), values = mx::expand_dims(mx::astype(v, mx::float32), 2);
  auto scores = mx::matmul(mx::multiply(in_groups, mx::array(args.scale / args.softcap)), mx::swapaxes(keys, -1, -2));
  scores = mx::multiply(mx::tanh(scores), mx::array(args.softcap));
  if (mask) {
    const auto seen = mask->ndim() == 4 ? mx::expand_dims(*mask, 2) : *mask;
    scores = mx::where(seen, scores, mx::array(-std::numeric_limits<float>::infinity()));
  }
  if (sinks) {
    const auto of_head = mx::reshape(mx::astype(*sinks, mx::float32), {1, k.shape(1), group, 1, 1});
    scores = mx::concatenate({mx::broadcast_to(of_head, {q.shape(0), k.shape(1), group, q.shape(2), 1}), scores}, -1);
  }
  auto weights = mx::softmax(scores, -1, true);
  if (sinks) weights = mx::slice(weights, {0, 0, 0, 0, 1}, weights.shape());
  const auto result = mx::matmul(weights, values);
  return mx::astype(mx::reshape(result, {q.shape(0), q.shape(1), q.shape(2), v.shape(3)}), q.dtype());
}

}  // namespace

std::optional<mx::array> visible_keys(int queries, int keys, const AttentionArgs& args, const std::optional<mx::array>& segments) {
  std::optional<mx::array> mask;
  const auto also = [&](const mx::array& other) { mask = mask ? mx::logical_and(*mask, other) : other; };
  const auto t = mx::expand_dims(mx::arange(args.offset, args.offset + queries, 1), 1), s = mx::expand_dims(mx::arange(0, keys, 1), 0);
  if (args.causal) also(mx::less_equal(s, t));
  if (args.window > 0) also(mx::greater(s, mx::subtract(t, mx::array(args.window))));
  if (args.chunk > 0) {
    const auto begins = chunk_begins(keys, args.chunk, segments);
    const auto of_queries = mx::slice(begins, {0, args.offset}, {begins.shape(0), args.offset + queries});
    also(segments ? mx::equal(mx::expand_dims(of_queries, {1, 3}), mx::expand_dims(begins, {1, 2}))
                  : mx::equal(mx::squeeze(mx::expand_dims(of_queries, 2), 0), begins));
  }
  if (segments) {
    const auto of_query = mx::expand_dims(*segments, {1, 3}), of_key = mx::expand_dims(*segments, {1, 2});
    auto same = mx::equal(of_query, of_key);
    if (args.branch_bits > 0) {
      const auto trunk = mx::left_shift(mx::right_shift(of_query, mx::array(args.branch_bits)), mx::array(args.branch_bits));
      same = mx::logical_or(same, mx::equal(trunk, of_key));
    }
    also(same);
  }
  return mask;
}

mx::array attention_mlx(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args,
                        const std::optional<mx::array>& segments, const std::optional<mx::array>& sinks) {
  const int queries = q.shape(1), keys = args.causal ? args.offset + queries : k.shape(1);
  const auto heads_first = [&](const mx::array& x, int tokens) {
    const auto seen = tokens == x.shape(1) ? x : mx::slice(x, {0, 0, 0, 0}, {x.shape(0), tokens, x.shape(2), x.shape(3)});
    return mx::swapaxes(seen, 1, 2);
  };
  const auto qh = heads_first(q, queries), kh = heads_first(k, keys), vh = heads_first(v, keys);
  const bool plain_causal = args.causal && args.window == 0 && args.chunk == 0 && !segments;
  if (args.softcap > 0) return mx::swapaxes(capped(qh, kh, vh, args, visible_keys(queries, keys, args, segments), sinks), 1, 2);
  auto mask = plain_causal ? std::nullopt : visible_keys(queries, keys, args, segments);
  // What MLX makes of a boolean mask for cuDNN is as large as the scores of all heads, in every layer; one that is added needs no such copies.
  if (mask && cuda_kernels()) mask = mx::where(*mask, mx::array(0.0f, q.dtype()), mx::array(-std::numeric_limits<float>::infinity(), q.dtype()));
  const auto of_heads = sinks ? std::optional(mx::astype(*sinks, q.dtype())) : std::nullopt;
  const auto result = mx::fast::scaled_dot_product_attention(qh, kh, vh, args.scale, plain_causal ? "causal" : "", mask, of_heads);
  return mx::swapaxes(result, 1, 2);
}

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args, const std::optional<mx::array>& segments,
                    const std::optional<mx::array>& sinks) {
  check(q, k, v, args, segments, sinks);
  const mx::Shape result{q.shape(0), q.shape(1), q.shape(2), v.shape(3)};
  if (q.size() == 0 || v.size() == 0) return mx::zeros(result, q.dtype());
#ifdef LQUANT_ONEDNN
  if (cpu_kernels() && q.dtype() != mx::float16) return attention_cpu(q, k, v, args, segments, sinks);
  if (cpu_kernels()) {  // its products are of f32 and bf16
    const auto f32 = [](const mx::array& x) { return mx::astype(x, mx::float32); };
    return mx::astype(attention_cpu(f32(q), f32(k), f32(v), args, segments, sinks), mx::float16);
  }
#endif
  return attention_mlx(q, k, v, args, segments, sinks);
}

}  // namespace lquant::kernels
