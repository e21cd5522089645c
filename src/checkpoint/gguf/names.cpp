// Names as data: one small table an architecture, made of pieces that several share. The left side are llama.cpp's names (gguf-py's
// constants.py), the right side those of transformers, or of mlx_lm where that stacks experts.
#include "checkpoint/gguf/names.h"

#include <set>
#include <utility>

namespace lquant::checkpoint::gguf {
namespace {

using Row = Architecture::Row;
using Rows = std::vector<Row>;

Rows operator+(Rows a, const Rows& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Rows with(Change change, Rows rows) {
  for (auto& row : rows) row.change = change;
  return rows;
}

const Rows kValueAndOutput = {{"attn_v", "self_attn.v_proj"}, {"attn_output", "self_attn.o_proj"}};
const Rows kAttention = Rows{{"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"}} + kValueAndOutput;
/// Of models whose rotary positions llama.cpp applies to neighbouring features.
const Rows kInterleaved = Rows{{"attn_q", "self_attn.q_proj", Change::heads}, {"attn_k", "self_attn.k_proj", Change::kv_heads}} + kValueAndOutput;
const Rows kHeadNorms = {{"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"}};
const Rows kNorms = {{"attn_norm", "input_layernorm"}, {"ffn_norm", "post_attention_layernorm"}};
const Rows kSandwichNorms = {{"attn_norm", "input_layernorm"},
                             {"post_attention_norm", "post_attention_layernorm"},
                             {"ffn_norm", "pre_feedforward_layernorm"},
                             {"post_ffw_norm", "post_feedforward_layernorm"}};
const Rows kMlp = {{"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"}, {"ffn_down", "mlp.down_proj"}};
const Rows kQwenExperts = {{"ffn_gate_inp", "mlp.gate"},
                           {"ffn_gate_exps", "mlp.switch_mlp.gate_proj"},
                           {"ffn_up_exps", "mlp.switch_mlp.up_proj"},
                           {"ffn_down_exps", "mlp.switch_mlp.down_proj"},
                           {"ffn_gate_up_exps", "mlp.switch_mlp.gate_proj", Change::first_half},
                           {"ffn_gate_up_exps", "mlp.switch_mlp.up_proj", Change::second_half}};
/// Stacked, and one by one as the first converters wrote them.
const Rows kMixtralExperts = {{"ffn_gate_inp", "block_sparse_moe.gate"},
                              {"ffn_gate_exps", "block_sparse_moe.switch_mlp.gate_proj"},
                              {"ffn_up_exps", "block_sparse_moe.switch_mlp.up_proj"},
                              {"ffn_down_exps", "block_sparse_moe.switch_mlp.down_proj"},
                              {"ffn_gate.*", "block_sparse_moe.experts.*.w1"},
                              {"ffn_down.*", "block_sparse_moe.experts.*.w2"},
                              {"ffn_up.*", "block_sparse_moe.experts.*.w3"}};
const Rows kFused = Rows{{"attn_qkv", "self_attn.qkv_proj"}, {"attn_output", "self_attn.o_proj"}} + kNorms +
                    Rows{{"ffn_up", "mlp.gate_up_proj"}, {"ffn_down", "mlp.down_proj"}};

const Architecture kArchitectures[] = {
    {"llama", "llama", "LlamaForCausalLM", kInterleaved + kNorms + kMlp},
    {"llama", "mixtral", "MixtralForCausalLM", kInterleaved + kNorms + kMixtralExperts},
    {"smollm3", "smollm3", "SmolLM3ForCausalLM", kInterleaved + kNorms + kMlp},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", kAttention + kNorms + kMlp},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", kAttention + kHeadNorms + kNorms + kMlp},
    {"qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", kAttention + kHeadNorms + kNorms + kMlp + kQwenExperts},
    {"gemma", "gemma", "GemmaForCausalLM", kAttention + with(Change::plus_one, kNorms) + kMlp, Change::plus_one},
    {"gemma2", "gemma2", "Gemma2ForCausalLM", kAttention + with(Change::plus_one, kSandwichNorms) + kMlp, Change::plus_one},
    {"gemma3", "gemma3_text", "Gemma3ForCausalLM", kAttention + with(Change::plus_one, kHeadNorms + kSandwichNorms) + kMlp, Change::plus_one},
    {"phi3", "phi3", "Phi3ForCausalLM", kFused},
};

/// Outside of the blocks all are alike, but for what was done to the last norm.
const Rows kOutside = {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};

/// The number in `name` where `pattern` has its '*', or an empty view where there is none; nothing when they do not match.
std::optional<std::string_view> match(std::string_view pattern, std::string_view name) {
  const auto star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == name ? std::optional(std::string_view{}) : std::nullopt;
  const auto tail = pattern.substr(star + 1);
  if (name.size() <= star + tail.size() || !name.starts_with(pattern.substr(0, star)) || !name.ends_with(tail)) return std::nullopt;
  const auto number = name.substr(star, name.size() - star - tail.size());
  return number.find_first_not_of("0123456789") == std::string_view::npos ? std::optional(number) : std::nullopt;
}

std::string fill(std::string_view pattern, std::string_view number) {
  const auto star = pattern.find('*');
  if (star == std::string_view::npos) return std::string(pattern);
  return std::string(pattern.substr(0, star)) + std::string(number) + std::string(pattern.substr(star + 1));
}

}  // namespace

const Architecture* find_architecture(std::string_view name, bool experts) {
  const Architecture* found = nullptr;
  for (const auto& row : kArchitectures)
    if (row.name == name && (!found || experts)) found = &row;  // the row with experts, where there are two, is the second
  return found;
}

std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (const auto& row : kArchitectures)
    if (names.empty() || names.back() != row.name) names.emplace_back(row.name);
  return names;
}

std::vector<Mapped> map_name(const Architecture& architecture, std::string_view gguf_name) {
  const auto dot = gguf_name.rfind('.');
  if (dot == std::string_view::npos) return {};
  const auto suffix = gguf_name.substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return {};
  const auto stem = gguf_name.substr(0, dot);
  std::vector<Mapped> mapped;
  if (const auto block = match("blk.*", stem.substr(0, stem.find('.', 4))); block && stem.size() > 5 + block->size()) {
    const auto inner = stem.substr(5 + block->size());
    for (const auto& row : architecture.block)
      if (const auto number = match(row.gguf, inner))
        mapped.push_back({"model.layers." + std::string(*block) + "." + fill(row.hugging_face, *number) + std::string(suffix), row.change});
  } else {
    for (const auto& row : kOutside) {
      if (row.gguf != stem) continue;
      const bool norm = row.gguf == "output_norm";
      mapped.push_back({std::string(row.hugging_face) + std::string(suffix), norm ? architecture.final_norm : Change::none});
    }
  }
  return mapped;
}

bool is_table(std::string_view gguf_name) {
  static const std::set<std::string_view> outside = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};
  if (outside.contains(gguf_name)) return true;
  const auto dot = gguf_name.find('.', 4);
  return dot != std::string_view::npos && match("blk.*", gguf_name.substr(0, dot)) && gguf_name.substr(dot) == ".attn_rot_embd.weight";
}

}  // namespace lquant::checkpoint::gguf
