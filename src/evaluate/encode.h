#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evaluate/prompts.h"
#include "text/tokenizer.h"

namespace lquant::evaluate {

/// Tokens to run, of which those from `scored` (at least 1) on are asked for: Σ log p(token | all before it).
struct Sequence {
  std::vector<std::int32_t> tokens;
  std::size_t scored = 0;
};

/// A question in tokens, one sequence a choice.
struct Encoded {
  std::vector<Sequence> sequences;  ///< empty tokens: nothing of that choice's context fits, its log-likelihood is −∞
  bool cut = false;                 ///< some context lost its beginning
};

struct EncodeOptions {
  int max_tokens = 0;  ///< inputs that the model takes at most
  bool chat = false;   ///< the contexts come from a chat template, which writes the special tokens itself
  int vocab = 0;       ///< rows of the model's table of tokens; 0: ids are not checked
};

/// Contexts and continuations as lm-eval encodes them: white space at the end of a context goes to the continuation; context and whole are encoded
/// each for itself, and the continuation is what the whole has beyond the context's length; special tokens are added unless the
/// text begins with the beginning-of-text token; an empty context is that token (or the end-of-text one). What does not fit is cut as
/// mlx_lm's wrapper cuts it: from the left of the context, for all choices of a context as its longest one needs.
/// Throws Error naming `places[i]`, where the question stands, for a continuation that adds no token, a text that the tokenizer refuses and a token
/// outside the model's table.
std::vector<Encoded> encode(const text::Tokenizer& tokenizer, const std::vector<Prompt>& prompts, const std::vector<std::string>& places,
                            const EncodeOptions& options);

}  // namespace lquant::evaluate
