#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file_set.h"

namespace lquant::text {

struct ChatTemplate {
  std::string name;  // the file it came from, for messages
  std::string source;
};

/// What the files around tokenizer.json say, read as Hugging Face transformers 5 reads them.
struct TokenizerFolder {
  std::string tokenizer_json;
  nlohmann::json config;  // tokenizer_config.json; an empty object when there is none

  /// Token text by role ("bos_token", "eos_token", "pad_token", … and the model's own "*_token" keys): what chat templates
  /// see as variables. From tokenizer_config.json and, when that file has no added_tokens_decoder, special_tokens_map.json.
  std::map<std::string, std::string> special_tokens;

  /// Tokens that these files name, in the form that lquant_tokenizer_open takes.
  nlohmann::ordered_json added_tokens;

  /// eos_token_id of generation_config.json or, where that has none, of config.json: one id or a list of them.
  std::vector<int> model_eos_ids;

  /// By name ("default", "tool_use", …): chat_template.jinja, else tokenizer_config.json's chat_template.
  std::map<std::string, ChatTemplate> templates;
};

/// Throws Error (tag text) naming the file that is missing or not what it should be. Only tokenizer.json must exist.
TokenizerFolder read_tokenizer_folder(const FileSet& files);

}  // namespace lquant::text
