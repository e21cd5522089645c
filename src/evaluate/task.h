#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace lquant::evaluate {

/// Where the right choice's index stands in a row; tried in order, the first whose fields the row has.
struct GoldRule {
  std::string field;       ///< an integer, or digits as text; with `among` any text
  std::string among;       ///< the path of a list: the index is the field's place in it
  std::int64_t first = 0;  ///< what the first choice is called (1 where rows count from 1)
};

/// A multiple-choice benchmark as data; the files are in tasks/, one a task, and equal lm-eval 0.4.13's definitions of the same names:
///   text            templates of the prompt, the first whose fields a row has; each choice is scored as its continuation
///   choices         {"list": [paths]} of a list in the row, or {"each": [templates]}
///   text_of_choice  instead of these: a prompt for each choice, whose continuation is the same `ending` (partial evaluation,
///                   arXiv 1806.02847)
///   clean           "wikihow": HellaSwag's clean-up of text and choices
///   gold            rules, see GoldRule
///   splits          names of the files; scored is test, else validation; examples come from train
///   target_delimiter, fewshot_delimiter   between prompt and answer, between examples
///   metrics         acc: the likeliest choice is right; acc_norm: the same per character
/// A template is text with "{path}" or "{path:filter}"; a path goes through objects by dots. Filters: capitalize, before_blank,
/// after_blank (of a sentence with one "_"; the latter stripped).
struct Task {
  std::string name;
  double version = 0;
  std::optional<std::string> train, validation, test;
  std::vector<std::string> text, choice_lists, choice_texts, text_of_choice;
  std::string ending, clean;
  std::vector<GoldRule> gold;
  std::string target_delimiter, fewshot_delimiter;
  std::vector<std::string> metrics;
  nlohmann::json definition;  ///< the file

  /// The split that is scored.
  const std::string& scored_split() const { return test ? *test : *validation; }
  /// lm-eval draws one example more than asked for and drops the scored row from them, unless the task has a test split (where the
  /// examples' split, unnamed, differs from it).
  bool draws_spare_example() const { return !test; }
};

/// Throws Error for a definition that is not as above.
Task parse_task(const nlohmann::json& definition);

/// All tasks, by name.
const std::vector<Task>& tasks();
/// Throws Error for an unknown name, with the nearest one.
const Task& find_task(const std::string& name);

/// Of the build: the files of tasks/.
const std::vector<const char*>& embedded_tasks();

}  // namespace lquant::evaluate
