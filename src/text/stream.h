#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "text/tokenizer.h"

namespace lquant::text {

/// Decodes ids one at a time, for printing a text while it is generated. Each piece is whole UTF-8: what is not yet a character
/// waits for the token that completes it. The pieces, joined, are decode() of all the ids as long as their bytes make
/// characters; where they do not, U+FFFD may stand more or fewer times.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = false) : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  /// What this id adds to the text; often empty.
  std::string add(std::int32_t id);
  /// What was still waiting, as far as it can be decoded. Afterwards the decoder is as new.
  std::string finish();

 private:
  std::string advance(const std::string& text);

  Tokenizer tokenizer_;
  bool skip_special_;
  std::vector<std::int32_t> window_;  // ids that are decoded together: context that was handed out, then the new ones
  std::size_t context_ = 0;           // how many of them are context
  std::string context_text_;          // decode() of the context
};

}  // namespace lquant::text
