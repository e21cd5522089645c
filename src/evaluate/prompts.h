#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "evaluate/python_random.h"
#include "evaluate/rows.h"
#include "evaluate/task.h"

namespace lquant::evaluate {

/// Messages {"role", "content"} as the text that the model was trained to see, ready for its answer.
using Chat = std::function<std::string(const nlohmann::ordered_json& messages)>;

struct PromptOptions {
  int shots = 0;
  std::int64_t seed = 123;
  /// Examples as turns of their own instead of one user's turn; matters with a chat alone, as in lm-eval.
  bool multiturn = false;
  Chat chat = nullptr;  ///< none: plain text
};

/// What a model is asked about one question: how likely is `continuations[i]` behind `context(i)`?
struct Prompt {
  std::vector<std::string> contexts;       ///< one, or one for each choice
  std::vector<std::string> continuations;  ///< of each choice
  const std::string& context(std::size_t choice) const { return contexts.size() == 1 ? contexts[0] : contexts[choice]; }
};

/// Builds a task's prompts as lm-eval 0.4.13 does. Examples are drawn from the train split by random.Random(seed), question after question, so
/// questions are to be asked for in the order of their rows, from the first on.
class Prompter {
 public:
  /// `examples` may be nullptr without shots; it must outlive the object, as must `task`.
  Prompter(const Task& task, const RowFile* examples, PromptOptions options);
  /// The question of row `i` of `rows`. Throws Error when the examples' file holds too few rows, or a row drawn is malformed.
  Prompt prompt(const RowFile& rows, std::size_t i, const Question& question);

 private:
  std::vector<std::size_t> draw(const RowFile& rows, std::size_t i);

  const Task& task_;
  const RowFile* examples_;
  PromptOptions options_;
  PythonRandom random_;
};

}  // namespace lquant::evaluate
