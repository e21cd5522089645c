#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/gguf/metadata.h"

namespace lquant::checkpoint::gguf {

/// As tokenizer.ggml.token_type numbers them (SentencePiece's kinds).
enum class TokenType { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Token {
  std::string text;  ///< as the vocabulary of tokenizer.json writes it; valid UTF-8
  TokenType type = TokenType::normal;
  float score = 0;
  bool filler = false;  ///< stands for an id that no token has; in no vocabulary
};

/// tokenizer.ggml.tokens with types and scores.
class Vocabulary {
 public:
  /// `sentencepiece`: blanks of user-defined tokens become "▁", as they are in the texts that its merges see. Throws Error when tokens are
  /// missing, twice there or no UTF-8, or when the lists' lengths differ.
  Vocabulary(const Metadata& metadata, bool sentencepiece);

  const std::vector<Token>& tokens() const { return tokens_; }
  /// By role: "bos", "eos", "unknown", "padding", …; nothing when the file names none, or an id that is none.
  std::optional<int> id(const Metadata& metadata, const std::string& role) const;

 private:
  std::vector<Token> tokens_;
};

using Merges = std::vector<std::pair<std::string_view, std::string_view>>;

/// Merges of a byte-level vocabulary, as the file lists them. Throws Error when one names what is no token.
Merges listed_merges(const Metadata& metadata, const Vocabulary& vocabulary);
/// Merges of a SentencePiece vocabulary, which has scores instead: every way to cut a token into two others, best scores first, as transformers'
/// conversion of such models makes them.
Merges scored_merges(const Vocabulary& vocabulary);

}  // namespace lquant::checkpoint::gguf
