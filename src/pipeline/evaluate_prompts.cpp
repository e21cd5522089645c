#include "pipeline/evaluate_prompts.h"

#include <algorithm>

#include "base/error.h"
#include "evaluate/python_text.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;

namespace {

evaluate::RowFile open_rows(const EvaluateRun& run, const evaluate::Task& task, const std::string& split, const std::string& purpose) {
  const auto file = run.data / task.name / (split + ".jsonl");
  if (!fs::exists(file))
    fail("pipeline", "{}: is missing; it has {} (--data-dir holds TASK/SPLIT.jsonl, one JSON object a line)", file.string(), purpose);
  return evaluate::RowFile(file);
}

}  // namespace

TaskRows read_task(const evaluate::Task& task, const EvaluateRun& run, const evaluate::Chat& chat) {
  const auto rows = open_rows(run, task, task.scored_split(), "the rows of " + task.name);
  const int shots = run.shots.value_or(0);
  std::optional<evaluate::RowFile> examples;
  if (shots > 0) {
    const auto& split = task.train ? *task.train : task.validation ? *task.validation : *task.test;
    examples = open_rows(run, task, split, fmt::format("the examples that --num-shots {} puts before each prompt of {}", shots, task.name));
  }
  evaluate::Prompter prompter(task, examples ? &*examples : nullptr, {shots, run.seed, run.multiturn, chat});
  TaskRows result{&task, rows.size(), rows.hash(), {}, {}, {}, {}};
  const auto count = run.limit ? std::min<std::size_t>(rows.size(), static_cast<std::size_t>(*run.limit)) : rows.size();
  for (std::size_t i = 0; i < count; ++i) {
    const auto question = rows.question(task, i);
    result.prompts.push_back(prompter.prompt(rows, i, question));
    result.gold.push_back(question.gold);
    std::vector<std::size_t> lengths;
    for (const auto& choice : question.texts.size() > 1 ? question.texts : question.endings) lengths.push_back(evaluate::code_points(choice));
    result.lengths.push_back(std::move(lengths));
    result.places.push_back(rows.place(i));
  }
  return result;
}

}  // namespace lquant::pipeline
