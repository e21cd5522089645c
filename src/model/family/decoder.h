#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "kernels/gated.h"
#include "model/family/config.h"
#include "model/op.h"
#include "model/ops/attention.h"
#include "model/spec.h"

// The decoder that most families vary: a norm, rotary grouped-head attention, a norm, an MLP. A family fills the fields, names its tensors, and
// changes in each layer what is its own.
namespace lquant::model::family {

/// Why such tensors are left out.
inline constexpr const char* kNotRun = "layers that predict several tokens at once (MTP), which mlx_lm does not run";

/// Names of config.json's fields; null: the family has no such field. Without heads there is no attention.
struct Keys {
  const char* hidden = "hidden_size";
  const char* layers = "num_hidden_layers";
  const char* intermediate = "intermediate_size";
  const char* heads = "num_attention_heads";
  const char* kv_heads = "num_key_value_heads";
  const char* head_dim = "head_dim";
  const char* vocab = "vocab_size";
  const char* eps = "rms_norm_eps";
};

/// Names of tensors: whole for what stands once, below the layer's prefix (layers + "3.") for the rest. Empty: there is none.
struct Names {
  std::string embedding = "model.embed_tokens", final_norm = "model.norm", head = "lm_head", layers = "model.layers.";
  std::string attention_norm = "input_layernorm", attention_post_norm, mlp_norm = "post_attention_layernorm", mlp_post_norm;
  std::string q = "self_attn.q_proj", k = "self_attn.k_proj", v = "self_attn.v_proj", qkv = "self_attn.qkv_proj", o = "self_attn.o_proj";
  std::string q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm";
  std::string gate = "mlp.gate_proj", up = "mlp.up_proj", gate_up = "mlp.gate_up_proj", down = "mlp.down_proj";

  /// Gemma 2 and 3: norms before and behind both.
  static Names sandwich();
  /// The same names under a prefix, as a wrapper's text part has them ("language_model.").
  Names under(const std::string& prefix) const;
};

/// One layer before it becomes a block.
struct Layer {
  int index = 0;
  std::string prefix;  ///< "model.layers.3."
  std::optional<NormSpec> attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
  Attention attention;
  std::shared_ptr<const Op> mixer;  ///< in place of attention, when there is one
  std::shared_ptr<const Op> mlp;
  std::shared_ptr<const Op> shared;  ///< experts that every token meets: reads what the MLP reads, and is added to it
  float scale = 1;                   ///< of both branches
  bool parallel = false;             ///< both read one residual, and without an mlp_norm one norm, attention_norm

  /// The norms of q and k, where there are any, are over all their heads together.
  void norm_over_all_heads();
  BlockSpec block() const;
};

struct Decoder {
  enum class Fused { apart, in_order, by_group };  ///< q, k, v: three linears, or one with parts

  int hidden = 0, layers = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  Names names;         ///< without the prefix
  std::string prefix;  ///< of all names (Config::prefix)
  NormSpec::Kind norm = NormSpec::Kind::rms;
  bool norm_weight = true, norm_bias = false;
  float eps = 1e-6f, norm_offset = 0;
  bool tied = true;
  bool head_if_present = false;  ///< the config leaves open whether it is tied
  bool drops_head = true;        ///< a tied model's checkpoint may hold a head all the same, which is left out
  bool qkv_bias = false, o_bias = false, mlp_bias = false, head_bias = false;
  Fused fused_attention = Fused::apart;
  bool fused_mlp = false;  ///< gate and up in one linear, gate first
  bool plain_mlp = false;  ///< up, activation, down
  bool qk_norm = false;    ///< q_norm and k_norm over each head
  bool parallel = false;
  kernels::Activation activation = kernels::Activation::silu;
  float scale = 0;         ///< of attention scores; 0: 1 / sqrt(head_dim)
  float branch_scale = 1;  ///< of what attention and MLP add to the residual

  /// Sizes and eps; kv heads default to heads, head_dim to hidden / heads (also when it is 0 or absent).
  static Decoder read(const Config& config, const Keys& keys = {});
  /// tie_word_embeddings, which must be there when there is no default. In Python null is false: a head of the checkpoint's own is used; where it has
  /// none the model can only be tied.
  void read_tie(const Config& config, std::optional<bool> otherwise, const char* key = "tie_word_embeddings");
  /// mlx_lm ties the head whatever tie_word_embeddings says. A head that is not tied by the config either is refused, not dropped.
  void always_tied(const Config& config);
  /// Where mlx_lm runs no heads that do not divide the hidden size.
  void require_even_heads() const;

  /// A norm over the hidden states under this whole name.
  NormSpec norm_at(const std::string& name) const;
  /// Layer i as the fields say.
  Layer layer(int i, const std::optional<RopeSpec>& rope) const;
  /// The model without blocks.
  ModelSpec outer(const std::string& family) const;
  /// Every block alike but for what `change` does to a layer.
  ModelSpec build(const std::string& family, const std::optional<RopeSpec>& rope, const std::function<void(Layer&)>& change = nullptr) const;
};

/// An RMS norm over `size` numbers under this whole name; without weight it has no tensor, and needs no name.
NormSpec rms_norm_over(const std::string& name, int size, float eps, bool weight = true);

/// A row for a parameter that checkpoints have in another shape, of the same numbers in the same order: taps of a convolution are [channels, taps, 1]
/// here and [channels, 1, taps] in torch's layout.
Import reshaped(const ParameterSpec& parameter);

/// A linear of block i.
LinearSpec block_linear(int block, const std::string& path, Role role, int out, int in, bool bias = false);

/// mlx_lm's own quantizer leaves it dense.
void leave_dense(LinearSpec& linear);

}  // namespace lquant::model::family
