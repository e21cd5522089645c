#pragma once

#include <mlx/array.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "codec/format.h"
#include "model/imports.h"

// The architecture of a decoder as data. A family (src/model/family/) turns its config.json into one ModelSpec; one
// forward pass (forward.h), one loader (model.h) and every quantization method read nothing but this.
namespace lquant::model {

namespace mx = mlx::core;

class Op;  // op.h

/// What a linear does: a hint for recipes, reports and GGUF names. What methods do follows from stages and edges. A plain MLP's linears are `up` and
/// `down`; `kv` makes keys and values, or what both are made of; `router` chooses the experts of a token; `other` is everything without a name of its
/// own.
enum class Role { q, k, v, qkv, kv, o, gate, up, gate_up, down, router, expert_gate, expert_up, expert_down, other, embed, head };
std::string_view to_string(Role role);

/// Rows of a fused linear that belong to one of its parts: row r of the part is row first + (r / run) · stride + r % run of the linear. A part in one
/// piece has run = rows; q of a linear fused by head has run = head_dim and stride = 3 · head_dim.
struct Part {
  Role role = Role::other;
  int rows = 0, first = 0, run = 0, stride = 0;

  int row(int r) const { return first + r / run * stride + r % run; }
  bool contiguous() const { return run == rows; }
  static Part piece(Role role, int first, int rows) { return {role, rows, first, rows, rows}; }
};

/// y = x · Wᵀ (+ bias): tensors path + ".weight" [out, in] and, if `bias`, path + ".bias" [out]. With experts > 0 it is a stack: both have
/// a leading axis [experts]. The embedding is one too (out = vocabulary, in = hidden size): its rows are looked up.
struct LinearSpec {
  std::string path;  ///< "model.layers.0.self_attn.q_proj"
  Role role = Role::other;
  int out = 0, in = 0;
  int experts = 0;
  bool bias = false;
  int block = -1;                ///< the block it belongs to; −1 for the embedding and the head
  int top_k = 0;                 ///< of a stack: how many matrices a token meets
  std::vector<Part> parts = {};  ///< of a fused linear; empty: one part
  /// What mlx_lm's own quantizer uses for it whatever the user asked for (routers: 8 bits, group 64).
  std::optional<codec::Format> fixed_format = std::nullopt;
  /// That is advice (Granite's output projections), which methods that choose formats themselves are free to leave; of a linear with a dense_why,
  /// that mlx_lm's own quantizer leaves it dense, as recipes and a user's plan need not.
  bool only_advised = false;
  /// How often a block reads it (Gemma 3n's router: twice). 0: mlx_lm wants it to be there and nothing reads it; it is written, rounded plainly where
  /// it is packed.
  int reads = 1;
  /// Why it must stay dense, for mlx_lm could not run it packed; empty: it need not.
  std::string dense_why = {};
  /// What the matrices of a stack read: rows that a router sends to each; a slice of the input each, such as a head's; one input all of them.
  enum class Stack { routed, sliced, shared };
  Stack stack = Stack::routed;
  /// Its result is only compared (an indexer's): no gradient reaches it, and none can tell how many bits it needs.
  bool only_chooses = false;
  bool keeps_dtype = false;  ///< its tensors are in that of the checkpoint, whatever the model's is (mlx_lm's cast_predicate)

  /// Whether a router sends its matrices their rows: an expert sees some of the tokens, or none, as no other linear does.
  bool routed() const { return experts > 0 && stack == Stack::routed; }
  bool must_stay_dense() const { return !dense_why.empty() && !only_advised; }
  std::int64_t parameters() const { return std::int64_t{1} * out * in * (experts > 0 ? experts : 1); }
};

/// A norm over `size` numbers: rms (arXiv 1910.07467), layer (arXiv 1607.06450) or l2 (x / max(‖x‖, eps)); the weight in use is weight + offset (1
/// for Gemma). Its tensors are path + suffix and, if `bias`, path + ".bias". Without weight nothing is multiplied, and nothing is in the checkpoint.
struct NormSpec {
  enum class Kind { rms, layer, l2 };
  std::string path;
  int size = 0;
  float eps = 1e-6f;
  float offset = 0;
  float factor = 1;  ///< the weight in use is factor · (weight + offset), rounded to its dtype
  Kind kind = Kind::rms;
  bool weight = true, bias = false;
  int rows = 0;    ///< above 0: a weight for each of so many heads, [rows, size]
  int groups = 1;  ///< an RMS over each of so many equal parts of the row; the weight is one over all of it
  int pieces = 0;  ///< above 0: a weight for each head in a tensor each, path + ".norms.0.weight" … [size] (StableLM)
  std::string suffix = ".weight";
  bool keeps_dtype = false;   ///< as LinearSpec's
  bool weighs_input = false;  ///< an RMS norm of weight ⊙ x, with nothing behind it (Muse Spark)
  /// x is a residual in f32, in kNumberColumns · size columns (ops/exact.h); the result has `size`, in the state's dtype.
  bool reads_f32 = false;

  std::string weight_name(int piece = 0) const { return pieces > 0 ? path + ".norms." + std::to_string(piece) + ".weight" : path + suffix; }
  std::string bias_name() const { return path + ".bias"; }
  std::int64_t parameters() const { return std::int64_t{1} * size * ((weight ? std::max({1, rows, pieces}) : 0) + (bias ? 1 : 0)); }
};

/// A tensor that belongs to no linear and no norm: sinks, taps of a convolution, scalars.
struct ParameterSpec {
  std::string path;  ///< its whole name
  mx::Shape shape;
  bool keeps_dtype = false;  ///< that of the checkpoint, whatever the model's is (mlx_lm's cast_predicate)

  std::int64_t parameters() const;
};

/// Some columns of the state that passes from block to block, which is [B, T, width]: the residual, in most models alone; in others several streams
/// of it, keys and values that later blocks read, inputs that each layer has of its own. None: all of them.
struct Columns {
  int first = 0, width = 0;

  bool all() const { return width == 0; }
};

/// An op with a norm before it, a norm behind it and a factor: result = scale · after(op(before(x))).
struct Branch {
  std::optional<NormSpec> before = std::nullopt;
  std::shared_ptr<const Op> op;
  std::optional<NormSpec> after = std::nullopt;
  float scale = 1;    ///< rounded to the compute dtype when used, as a Python scalar is by MLX
  int gives = -1;     ///< first column of the state that Op::carried() is written to; −1: it carries nothing
  bool late = false;  ///< its result is added behind the block's last step (LongCat-Flash)
};

/// A residual in f32 with factors for each feature (Muse Spark): x ← of_residual ⊙ x + of_branches ⊙ Σ branches, all in f32. The step's columns are
/// numbers of f32 (ops/exact.h), and the norms that read them say so (NormSpec::reads_f32).
struct ResidualFactors {
  ParameterSpec of_residual, of_branches;  ///< [hidden]
};

/// Branches that all read the residual as it stands: x ← x + after(Σ branches). A norm that several branches read stands once, as `before`.
struct Step {
  std::optional<NormSpec> before = std::nullopt;
  std::vector<Branch> branches;
  std::optional<NormSpec> after = std::nullopt;
  Columns columns = {};   ///< those that are x
  float scale = 1;        ///< of x and what was added to it (Gemma 3n)
  bool replaces = false;  ///< the one branch's result is the state from here on
  bool instead = false;   ///< the branches' sum takes the place of x, to which it is not added (hyper-connections)
  Columns drops = {};     ///< columns of the state that nobody reads from here on; none by default
  /// Of x and of what is added to it; the scale is not used then.
  std::optional<ResidualFactors> factors = std::nullopt;
};

/// A linear of a block, and which input it reads: linears with equal op, stage and input read the same array (but experts, who read rows of it).
struct Reading {
  const LinearSpec* linear;
  int op;         ///< number of the op in the block
  int stage;      ///< of the block: linears of one stage are applied together (block.h)
  int input = 0;  ///< of the arrays that the op's linears read in this stage
};

/// What a checkpoint must hold of a part of a model; the pointers are the spec's own.
struct Contents {
  std::vector<Reading> readings;  ///< linears in the order of the forward pass
  std::vector<const NormSpec*> norms;
  std::vector<const ParameterSpec*> parameters;
};

struct BlockSpec {
  std::vector<Step> steps;
  std::optional<ParameterSpec> scalar = std::nullopt;  ///< [1]: the residual behind the last step is multiplied by it (Gemma 4)

  Contents contents() const;
  std::vector<const LinearSpec*> linears() const;  ///< in the order of the forward pass
  std::vector<const NormSpec*> norms() const;
  std::vector<const ParameterSpec*> parameters() const;
};

/// A channel that can be scaled in its producer and unscaled in its consumers without changing the function (AWQ,
/// arXiv 2306.00978): norm → the linears that read it, v → o, up → down.
struct Edge {
  int block = 0;
  int step = 0;                                 ///< of the block: the one whose result the consumers make
  std::string producer;                         ///< path of a norm or a linear
  std::optional<NormSpec> norm = std::nullopt;  ///< the producer, when it is one; its bias is divided too
  Part rows = {};                               ///< of a linear: channel c is row rows.row(c) of its output
  std::vector<std::string> consumers;           ///< paths of linears, all of the same width `in`
  int channels = 0;                             ///< independent scales
  int head_dim = 0, repeats = 1;                ///< grouped heads (v → o): `repeats` query heads read one value head
  bool tiled = false;                           ///< query head i reads value head i mod (value heads), not i / repeats
  int experts = 0;                              ///< with experts, each has `channels` scales of its own
  int degree = 1;                               ///< of the activation between (relu²: 2): the producer is divided by the scale's degree-th root

  /// The channel that the consumers' input column reads.
  int channel(int column) const { return tiled ? column % channels : column / (head_dim * repeats) * head_dim + column % head_dim; }
};

/// Tensors of a checkpoint that its model has no use for, and why: nothing is left out without such a row.
struct LeftOut {
  std::string pattern;  ///< of names; '*' stands for any characters
  std::string why;      ///< "rotary tables, which follow from config.json"
};

/// One run of a block. Blocks of some models run more than once, over the same tensors.
struct Visit {
  int block = 0, pass = 0;

  Visit(int block, int pass = 0) : block(block), pass(pass) {}  // of most models a block's number says it all
};

struct ModelSpec {
  std::string family;  ///< the table's name ("llama" for mistral too)
  int hidden = 0, vocab = 0;
  LinearSpec embedding;
  float embedding_multiplier = 1;                ///< rounded to the compute dtype when used, as a Python scalar is by MLX
  std::optional<LinearSpec> position_embedding;  ///< GPT-2's: a row for each position, added to the token's
  std::optional<NormSpec> embedding_norm;        ///< behind the embedding (nanochat)
  std::optional<BlockSpec> front;                ///< steps that make the state of the embedded tokens; its linears have no block
  std::vector<BlockSpec> blocks;
  std::optional<BlockSpec> tail;  ///< steps between the last block and the final norm, which leave [B, T, hidden]
  NormSpec final_norm;
  std::optional<LinearSpec> head;  ///< none: tied to the embedding
  /// The checkpoint, not its config, says whether there is a head of its own (Gemma 3): Model::open ties it when it has none.
  bool head_if_present = false;
  float head_input_divisor = 1;  ///< of the normed hidden states, rounded there (MiniCPM)
  float logit_softcap = 0;
  float logit_multiplier = 1;  ///< not rounded to 16 bits, for it may stand for a division (Granite)
  std::vector<LeftOut> left_out;
  Imports imports;
  /// Fields of config.json that mlx_lm would read otherwise, or not at all, as they stand there (null, absent, 6.0 for 6), with the values that they
  /// were read as here: an output's config.json has these.
  nlohmann::json settled = nlohmann::json::object();
  std::vector<std::string> warnings;  ///< what of config.json is not followed, a sentence each with what to do
  std::vector<std::string> removed;   ///< fields of config.json that an output's does not have
  std::string text_config;            ///< where a wrapper's config.json describes the text model: "text_config"; empty: at its top

  int streams = 1;  ///< the first streams · hidden columns of the state are the residual
  int passes = 1;   ///< how often the blocks run, each time all of them in order; the state goes on from one pass to the next

  bool tied() const { return !head; }
  /// Positions that the model knows, from the first token of a text on; 0: any number.
  int positions() const { return position_embedding ? position_embedding->out : 0; }
  /// Every run of every block, in the order of the forward pass.
  std::vector<Visit> visits() const;
  /// Every linear in the order of the forward pass: embedding, blocks, head. They are this spec's own.
  std::vector<const LinearSpec*> linears() const;
  /// Those before the first block but the embedding, and those behind the last one but the head.
  std::vector<const LinearSpec*> front_linears() const;
  std::vector<const LinearSpec*> tail_linears() const;
  /// Norms outside the blocks.
  std::vector<const NormSpec*> outer_norms() const;
  /// Of each group of linears that read one input, in the order of the forward pass; embedding and head are groups of their own.
  std::vector<std::vector<const LinearSpec*>> shared_inputs() const;
  /// Every edge of every block, and those of one.
  std::vector<Edge> edges() const;
  std::vector<Edge> edges_of(int block) const;
};

/// Reads model_type (after mlx_lm's renamings, such as mistral → llama) and the family's fields. Missing or senseless fields and
/// unknown types throw Error; of the latter it names the nearest known ones.
ModelSpec spec_from_config(const nlohmann::json& config);

/// The model types that spec_from_config knows, sorted.
std::vector<std::string> known_model_types();

/// The type whose code mlx_lm runs a model of this type with: "llama" for "mistral"; itself where it has code of its own.
std::string run_as(const std::string& model_type);

}  // namespace lquant::model
