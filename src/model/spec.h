#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "codec/format.h"
#include "kernels/elementwise.h"
#include "model/rope.h"

// The architecture of a decoder as data. A family (src/model/family/) turns its config.json into one ModelSpec; one
// forward pass (forward.h), one loader (model.h) and every quantization method read nothing but this.
namespace lquant::model {

/// What a linear does. Fused ones (Phi-3) have a role of their own; `router` chooses the experts of a token.
enum class Role { q, k, v, qkv, o, gate, up, gate_up, down, router, expert_gate, expert_up, expert_down, embed, head };
std::string_view to_string(Role role);

/// y = x · Wᵀ (+ bias): tensors path + ".weight" [out, in] and, if `bias`, path + ".bias" [out]. With experts > 0 both have
/// a leading axis [experts]. The embedding is one too (out = vocabulary, in = hidden size): its rows are looked up.
struct LinearSpec {
  std::string path;  ///< "model.layers.0.self_attn.q_proj"
  Role role = Role::q;
  int out = 0, in = 0;
  int experts = 0;
  bool bias = false;
  int block = -1;  ///< the block it belongs to; −1 for the embedding and the head
  /// What mlx_lm's own quantizer uses for it whatever the user asked for (routers: 8 bits, group 64).
  std::optional<codec::Format> fixed_format = std::nullopt;

  std::int64_t parameters() const { return std::int64_t{1} * out * in * (experts > 0 ? experts : 1); }
};

/// RMS norm, tensor path + ".weight" [size]; the weight in use is weight + offset (1 for Gemma).
struct NormSpec {
  std::string path;
  int size = 0;
  float eps = 1e-6f;
  float offset = 0;
};

struct AttentionSpec {
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  float softcap = 0;                       ///< of the scores (Gemma 2); 0: none
  int window = 0;                          ///< keys a query sees, itself included; 0: all before it
  std::optional<RopeSpec> rope;            ///< none: no positions (NoPE layers)
  std::optional<NormSpec> q_norm, k_norm;  ///< over each head (size head_dim)
  std::vector<LinearSpec> inputs;          ///< q, k, v, or one fused qkv whose rows are q's, then k's, then v's
  LinearSpec output;
};

struct DenseMlp {
  kernels::Activation activation = kernels::Activation::silu;
  std::vector<LinearSpec> inputs;  ///< gate, up, or one fused gate_up whose first half of rows is the gate
  LinearSpec down;
};

/// Mixture of experts: softmax over the router's outputs, the top_k largest, their gated MLPs weighted by those probabilities.
struct ExpertMlp {
  kernels::Activation activation = kernels::Activation::silu;
  int experts = 0, top_k = 0;
  bool normalize = false;  ///< the kept probabilities are divided by their sum
  LinearSpec router, gate, up, down;
  /// Where Hugging Face keeps single experts: "model.layers.3.mlp.experts" + ".7." + "gate_proj" + ".weight".
  std::string unstacked_path;
};

/// x ← x + [post](attention(norm(x))), then the same with the MLP. The norms behind the sub-layers are optional.
struct BlockSpec {
  NormSpec attention_norm, mlp_norm;
  std::optional<NormSpec> attention_post_norm, mlp_post_norm;
  AttentionSpec attention;
  std::variant<DenseMlp, ExpertMlp> mlp;

  std::vector<const LinearSpec*> linears() const;  ///< in the order of the forward pass
  std::vector<const NormSpec*> norms() const;
};

/// A channel that can be scaled in its producer and unscaled in its consumers without changing the function (AWQ,
/// arXiv 2306.00978): norm → the linears that read it, v → o, up → down.
struct Edge {
  int block = 0;
  std::string producer;  ///< path of a norm or a linear
  bool producer_is_norm = false;
  float norm_offset = 0;               ///< the norm's weight in use is weight + norm_offset
  std::vector<std::string> consumers;  ///< paths of linears, all of the same width `in`
  int channels = 0;                    ///< independent scales
  int first_row = 0;                   ///< channel c is output row first_row + c of the producer (fused qkv, gate_up)
  int head_dim = 0, repeats = 1;       ///< grouped heads (v → o): `repeats` query heads read one value head
  int experts = 0;                     ///< with experts, each has `channels` scales of its own

  /// The channel that the consumers' input column reads.
  int channel(int column) const { return column / (head_dim * repeats) * head_dim + column % head_dim; }
};

/// Tensors of a checkpoint that its model has no use for, and why: nothing is left out without such a row.
struct LeftOut {
  std::string pattern;  ///< of names; '*' stands for any characters
  std::string why;      ///< "rotary tables, which follow from config.json"
};

struct ModelSpec {
  std::string family;  ///< the table's name ("llama" for mistral too)
  int hidden = 0, vocab = 0;
  LinearSpec embedding;
  float embedding_multiplier = 1;  ///< rounded to the compute dtype when used, as a Python scalar is by MLX
  std::vector<BlockSpec> blocks;
  NormSpec final_norm;
  std::optional<LinearSpec> head;  ///< none: tied to the embedding
  /// The checkpoint, not its config, says whether there is a head of its own (Gemma 3): Model::open ties it when it has none.
  bool head_if_present = false;
  float logit_softcap = 0;
  float logit_multiplier = 1;
  std::vector<LeftOut> left_out;
  /// Fields of config.json that mlx_lm would read otherwise, or not at all, as they stand there (null, absent, 6.0 for 6), with the values that they
  /// were read as here: an output's config.json has these.
  nlohmann::json settled = nlohmann::json::object();

  bool tied() const { return !head; }
  /// Every linear in the order of the forward pass: embedding, blocks, head. They are this spec's own.
  std::vector<const LinearSpec*> linears() const;
  /// Every edge of every block, and those of one.
  std::vector<Edge> edges() const;
  std::vector<Edge> edges_of(int block) const;
};

/// Reads model_type (after mlx_lm's renamings, such as mistral → llama) and the family's fields. Missing or senseless fields and
/// unknown types throw Error, the latter listing the known ones.
ModelSpec spec_from_config(const nlohmann::json& config);

/// The model types that spec_from_config knows, sorted.
std::vector<std::string> known_model_types();

}  // namespace lquant::model
