#pragma once

#include <mlx/array.h>

#include <optional>

namespace lquant::kernels {

namespace mx = mlx::core;

struct AttentionArgs {
  float scale = 1.0f;
  /// Keys a query may see: itself and window − 1 before it; 0 means all before it. (It bounds the past alone: without `causal`
  /// later keys stay visible.)
  int window = 0;
  /// Scores become softcap·tanh(score / softcap) before the mask (Gemma 2); 0 means off.
  float softcap = 0.0f;
  /// Position of the first query among the keys (decoding with a KV cache): query t sees keys up to offset + t.
  int offset = 0;
  bool causal = true;
  /// Above 0 a segment number whose lowest `branch_bits` bits are not 0 is a branch: its queries see, besides their own segment, the one whose
  /// number has these bits 0, the trunk that they grow from (several endings of one text, the text computed once). At most 16; no
  /// gradient, and not together with a window, which counts places in the row and would cut a branch from its trunk too early.
  int branch_bits = 0;
  /// Above 0 a query sees keys of its own chunk alone (Llama 4): so many positions, counted from key 0, or with segments from the first token of
  /// the segment, which is then one run of equal numbers. Keys of a cache may begin at any chunk's first position. Not together with branches.
  int chunk = 0;
};

/// Causal grouped-head attention, softmax in f32. q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv]; H a multiple of
/// Hkv. segments int32 [B, S] (optional, then S = T): a query sees only keys with its own number, which keeps packed
/// texts apart. sinks [H] (optional, f32, bf16 or f16): a logit of each query head that takes part in its softmax and has no
/// value (arXiv 2309.17453; gpt_oss), neither scaled nor capped; MLX's own op rounds it to q's dtype. Result [B, T, H, Dv] in q's
/// dtype (f32, bf16, f16). Memory is linear in T and S, forward and backward (FlashAttention, arXiv 2205.14135). Gradients flow to
/// q, k, v and the sinks. Throws std::invalid_argument when shapes disagree, or when a query's own position offset + t lies beyond
/// the keys (causal, or with a window or chunks).
mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionArgs& args,
                    const std::optional<mx::array>& segments = std::nullopt, const std::optional<mx::array>& sinks = std::nullopt);

/// Which keys each query sees: bool [T, S], or [B, 1, T, S] with segments; nothing when all see all.
std::optional<mx::array> visible_keys(int queries, int keys, const AttentionArgs& args, const std::optional<mx::array>& segments = std::nullopt);

}  // namespace lquant::kernels
