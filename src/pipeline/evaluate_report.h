#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/evaluate.h"
#include "pipeline/evaluate_prompts.h"

namespace lquant::pipeline {

/// What was measured of one task: each row's log-likelihoods by the model and, when there is one, by the teacher.
struct TaskScores {
  const TaskRows* rows;
  std::vector<evaluate::Likelihoods> model, teacher;
};

/// Fills `figures`, and `report` in lm-eval's layout: results, configs, versions, n-shot, higher_is_better, n-samples; then `config`, and
/// `comparison` when there is a teacher.
void summarize(const std::vector<TaskScores>& scores, const EvaluateRun& run, const nlohmann::ordered_json& config, EvaluateResult& result);

/// One JSON object a line for each row: task, row (from 0), gold, loglikelihoods (null: −∞), acc, acc_norm where the task has it, and
/// teacher_loglikelihoods.
std::string row_lines(const std::vector<TaskScores>& scores);

}  // namespace lquant::pipeline
