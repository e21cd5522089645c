#pragma once

#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"

namespace lquant::checkpoint::gguf {

class Metadata;
/// A file's tensors under the names of Hugging Face's checkpoints.
using Tensors = std::map<std::string, TensorInfo, std::less<>>;

/// What llama.cpp's converter did to a tensor's values, and a reader undoes.
enum class Change {
  none,
  heads,        ///< rows of each query head interleaved: its two halves, which rotary positions pair, row by row
  kv_heads,     ///< the same with the key heads
  plus_one,     ///< 1 was added (norms that multiply by 1 + w)
  first_half,   ///< of a fused matrix: its first rows (of each expert)
  second_half,  ///< its last rows
};

/// One tensor as Hugging Face's checkpoints have it: the GGUF tensor that it is made from, and how.
struct Mapped {
  std::string name;  ///< "model.layers.3.self_attn.q_proj.weight"
  Change change = Change::none;
};

/// An architecture of GGUF files: what it and its tensors are called, and what a reader has to know beside the file. Rows of a table that whoever
/// opens a file brings along (Source::open).
struct Architecture {
  struct Row {
    std::string_view gguf, hugging_face;
    Change change = Change::none;
  };

  const char* name;        ///< general.architecture
  const char* model_type;  ///< of config.json
  const char* class_name;  ///< "architectures" of config.json
  std::vector<Row> block;  ///< below "blk.N." and "model.layers.N."; a '*' is a number that both have (an expert's)
  Change final_norm = Change::none;
  /// Part of a head's features may turn with the position, which config.json then has as "partial_rotary_factor". Otherwise all must.
  bool partial_rope = false;
  /// Writes into config.json what the architecture has beside the fields that all have and that are there already (make_config), or changes those.
  /// Null: nothing. Throws Error for what the model's config cannot say.
  void (*complete)(const Metadata& metadata, const Tensors& tensors, nlohmann::json& config) = nullptr;
  /// Whether an added token of a SentencePiece vocabulary takes the blanks behind it, which no file says. Null: none does.
  bool (*takes_blanks)(std::string_view token) = nullptr;
};

/// The row of a file. Where two rows have the name, the second is for files with a mixture of experts (`experts`). Null when there is none.
const Architecture* find_architecture(const std::vector<Architecture>& architectures, std::string_view name, bool experts);
/// Names for messages, each once, in the order of the rows.
std::vector<std::string> architecture_names(const std::vector<Architecture>& architectures);

/// What a tensor becomes; empty when the architecture has none of that name.
std::vector<Mapped> map_name(const Architecture& architecture, std::string_view gguf_name);
/// Tensors that hold no weights: factors of rotary positions, which go into config.json, and tables that every program makes itself.
bool is_table(std::string_view gguf_name);

}  // namespace lquant::checkpoint::gguf
