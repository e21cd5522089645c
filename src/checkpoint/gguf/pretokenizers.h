#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lquant::checkpoint::gguf {

/// How text is cut before its pieces are merged, of the tokenizers that tokenizer.ggml.pre names.
struct PreTokenizer {
  nlohmann::json normalizer;     ///< of tokenizer.json; null: none
  nlohmann::json pre_tokenizer;  ///< of tokenizer.json
  bool whole_words = false;      ///< a piece that is a token is not cut and merged ("ignore_merges")
  bool add_bos = false;          ///< where the file does not say
};

/// Throws Error naming `file` and the names that are known when `name` is none of them.
PreTokenizer pre_tokenizer(std::string_view name, const std::string& file);

}  // namespace lquant::checkpoint::gguf
