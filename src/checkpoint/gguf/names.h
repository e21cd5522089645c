#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lquant::checkpoint::gguf {

/// What llama.cpp's converter did to a tensor's values, and a reader undoes.
enum class Change {
  none,
  heads,        ///< rows of each query head interleaved: its two halves, which rotary positions pair, row by row
  kv_heads,     ///< the same with the key heads
  plus_one,     ///< 1 was added (Gemma's norms, which multiply by 1 + w)
  first_half,   ///< of a fused matrix: its first rows (of each expert)
  second_half,  ///< its last rows
};

/// One tensor as Hugging Face's checkpoints have it: the GGUF tensor that it is made from, and how.
struct Mapped {
  std::string name;  ///< "model.layers.3.self_attn.q_proj.weight"
  Change change = Change::none;
};

/// How an architecture's tensors and its model_type are called.
struct Architecture {
  const char* name;        ///< general.architecture
  const char* model_type;  ///< of config.json
  const char* class_name;  ///< "architectures" of config.json
  struct Row {
    std::string_view gguf, hugging_face;
    Change change = Change::none;
  };
  std::vector<Row> block;  ///< below "blk.N." and "model.layers.N."; a '*' is a number that both have (an expert's)
  Change final_norm = Change::none;
};

/// The row of a file; `experts`: it has a mixture of experts (Mixtral calls itself llama). Null when lquant does not read it.
const Architecture* find_architecture(std::string_view name, bool experts);
/// Names for messages, each once.
std::vector<std::string> architecture_names();

/// What a tensor becomes; empty when the architecture has none of that name.
std::vector<Mapped> map_name(const Architecture& architecture, std::string_view gguf_name);
/// Tensors that hold no weights: factors of rotary positions, which go into config.json, and tables that every program makes itself.
bool is_table(std::string_view gguf_name);

}  // namespace lquant::checkpoint::gguf
