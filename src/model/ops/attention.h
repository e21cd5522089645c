#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "model/op.h"
#include "model/ops/block_indexer.h"
#include "model/rope.h"

namespace lquant::model {

/// A factor of a query that grows with its position p: 1 + beta · ln(1 + floor(p / period)), made in f32 and rounded to the compute dtype (Llama 4,
/// Ministral 3). Positions count from the beginning of a text.
struct QueryTemperature {
  float beta = 0;
  int period = 1;
  int first = 0;  ///< p of a text's first token (Llama 4: 1)
};

/// A factor of what attention gives, before the output (arXiv 2505.06708): an activation of a product of attention's own input.
struct OutputGate {
  enum class Activation {
    sigmoid,
    softplus,  ///< made in f32 and rounded
  };
  Activation activation = Activation::sigmoid;
  /// [heads · head_dim, H], a factor for each feature, or [heads, H], one for each head. None: a factor for each feature, the second part of the
  /// queries' linear, whose first are the queries, or the last part of the one linear of queries, keys, values and gate.
  std::optional<LinearSpec> linear = std::nullopt;
};

/// What the kernel has to know of the context. Throws std::invalid_argument for segments with a cache, and for branches without segments or longer
/// than the window.
kernels::AttentionArgs attention_args(const Context& context, float scale, int window = 0);
/// Of a call with `length` tokens: positions of the longest text, what a cache holds included.
int longest_text(const Context& context, int length);

/// q [B, T, heads, D] times the factor of each token's place; `longest` bounds the positions of all texts.
mx::array heated(const Scope& scope, const QueryTemperature& temperature, const mx::array& q, int longest);

/// Grouped-head causal attention (arXiv 2305.13245) with rotary positions. Stage 0: q, k, v, the gate, the indexer's; stage 1: o.
struct Attention final : Op {
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  float limit = 0;               ///< above 0: products of q, k and v are cut to ±limit (DBRX)
  float softcap = 0;             ///< of the scores (Gemma 2); 0: none
  int window = 0;                ///< keys a query sees, itself included; 0: all before it
  int chunk = 0;                 ///< above 0: a query sees keys of its own chunk alone, so many positions from the text's first token on (Llama 4)
  int value_dim = 0;             ///< of a head's values and results; 0: head_dim
  float value_factor = 1;        ///< of the values (MiMo-V2)
  std::optional<RopeSpec> rope;  ///< none: no positions (NoPE layers)
  /// Over each head (size head_dim) or over all heads together (size heads · head_dim); a norm without weight is one too. v_norm is over each head.
  std::optional<NormSpec> q_norm, k_norm, v_norm;
  std::optional<NormSpec> result_norm;  ///< of each head's result, before gate and output; without weight (Muse Spark)
  bool norms_behind_rope = false;       ///< Hunyuan, nanochat
  bool wide = false;                    ///< queries and keys of f16 are taken to f32, for their products may not fit (Phi, StableLM)
  bool tiled = false;                   ///< query head i reads key and value head i mod kv_heads (PLaMo), not i / (heads / kv_heads)
  /// Keys and values are another block's, behind its norms and positions: those of `block`'s cache or, without one, these columns of the state. Then
  /// q is the only input.
  struct Shared {
    int block = 0, first = 0;
  };
  std::optional<Shared> shared;
  /// What is carried and read are products as they come, before norms and positions, which each block has of its own (Hunyuan).
  bool shares_products = false;
  /// Where a block runs again, over the same tensors (IQuest's Loop Coder): every query looks at the first pass's keys and values, all before it, and
  /// at its own pass's through a window. gate · the one + (1 − gate) · the other, with gate = sigmoid(query · w + b) of the query in its position.
  struct Again {
    Shared first;                   ///< the first pass's
    int window = 0;                 ///< of its own
    ParameterSpec gate, gate_bias;  ///< [heads, head_dim], [heads]
  };
  std::optional<Again> again;
  bool gives = false;                           ///< they are carried to later blocks: keys, then values
  bool values_from_keys = false;                ///< values are the keys' product before norm and positions: inputs are q and k (Gemma 4)
  std::optional<QueryTemperature> temperature;  ///< behind rope
  std::optional<ParameterSpec> sinks;           ///< [heads]: a logit of each head's softmax that has no value (gpt_oss)
  /// [1, 1, kv_heads, 1, 2]: w0 of the token before and w1 of the token itself, for each head of keys and of values, before rope (Baichuan M1).
  std::optional<ParameterSpec> k_taps, v_taps;
  /// []: keys and values are rounded, last of all, to whole multiples of it from −128 to 127 times (AFM).
  std::optional<ParameterSpec> k_step, v_step;
  /// q, k, v; or one linear with three parts, in this order, and a fourth where the gate is its own.
  std::vector<LinearSpec> inputs;
  std::optional<OutputGate> gate;
  /// With neither window, chunks, softcap, sinks nor tiles.
  std::optional<BlockIndexer> indexer;
  LinearSpec output;
  /// Of an attention that reads another block's keys and values: what mlx_lm wants to be there all the same.
  std::vector<LinearSpec> unread;
  std::optional<NormSpec> unread_norm;

  void contents(int op, int first_stage, Contents& all) const override;
  int stages() const override { return 2; }
  Flow start(const Scope& scope, const mx::array& normed, const mx::array& raw) const override;
  Flow advance(const Scope& scope, int stage, const Flow& at) const override;
  mx::array finish(const Scope& scope, const Flow& at, const std::optional<mx::array>& residual) const override;
  std::vector<mx::array> carried(const Flow& at) const override { return at.kept; }
  std::vector<std::string> readers() const override;
  std::vector<Edge> edges() const override;
  Traits traits() const override;

 private:
  std::vector<const LinearSpec*> first_readers() const;
  int width_of_values() const { return value_dim > 0 ? value_dim : head_dim; }
  std::vector<mx::array> project(const Scope& scope, const mx::array& h) const;
  Flow attend(const Scope& scope, const mx::array& h) const;
  std::pair<mx::array, mx::array> carried_by(const Scope& scope, const Shared& from, int batch, int length) const;
};

/// Parts of a fused linear whose rows are all of q's, then k's, then v's.
std::vector<Part> parts_in_order(int q, int kv);
/// Queries and their gates, rows head by head: a head's queries, then its gates (OutputGate).
std::vector<Part> parts_with_gate(int heads, int head_dim);
/// Parts of one whose rows come group by group: `repeats` query heads, their key head, their value head (gpt_neox with repeats 1, InternLM 2).
std::vector<Part> parts_by_group(int kv_heads, int repeats, int head_dim);

}  // namespace lquant::model
