#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "checkpoint/gguf/config.h"
#include "checkpoint/gguf/names.h"

// The architectures that lquant reads from GGUF files, one row each, in the file of its family. The names on the left are llama.cpp's (gguf-py's
// constants.py), those on the right transformers', or mlx_lm's where that stacks experts.
namespace lquant::model::family {

namespace gguf = checkpoint::gguf;

/// The rows, in the order of their names. They last as long as the program.
const std::vector<gguf::Architecture>& gguf_architectures();

/// Names that several architectures have: parts of Architecture::block.
namespace rows {

using Row = gguf::Architecture::Row;

inline constexpr Row kAttention[] = {
    {"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"}, {"attn_v", "self_attn.v_proj"}, {"attn_output", "self_attn.o_proj"}};
/// The same where llama.cpp turns neighbouring features.
inline constexpr Row kInterleavedAttention[] = {{"attn_q", "self_attn.q_proj", gguf::Change::heads},
                                                {"attn_k", "self_attn.k_proj", gguf::Change::kv_heads},
                                                {"attn_v", "self_attn.v_proj"},
                                                {"attn_output", "self_attn.o_proj"}};
inline constexpr Row kFusedAttention[] = {{"attn_qkv", "self_attn.qkv_proj"}, {"attn_output", "self_attn.o_proj"}};
inline constexpr Row kHeadNorms[] = {{"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"}};
inline constexpr Row kNorms[] = {{"attn_norm", "input_layernorm"}, {"ffn_norm", "post_attention_layernorm"}};
/// On both sides of attention and MLP.
inline constexpr Row kSandwichNorms[] = {{"attn_norm", "input_layernorm"},
                                         {"post_attention_norm", "post_attention_layernorm"},
                                         {"ffn_norm", "pre_feedforward_layernorm"},
                                         {"post_ffw_norm", "post_feedforward_layernorm"}};
inline constexpr Row kMlp[] = {{"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"}, {"ffn_down", "mlp.down_proj"}};
inline constexpr Row kFusedMlp[] = {{"ffn_up", "mlp.gate_up_proj"}, {"ffn_down", "mlp.down_proj"}};

/// All of these, one after the other.
std::vector<Row> join(std::initializer_list<std::span<const Row>> parts);
/// The same, where the converter changed the values of all of them so.
std::vector<Row> changed(gguf::Change change, std::initializer_list<std::span<const Row>> parts);

}  // namespace rows

/// Whether attention and MLP have biases, told by the first block's tensors.
void gguf_biases(const gguf::Tensors& tensors, nlohmann::json& config);

}  // namespace lquant::model::family
