#pragma once

#include <string>
#include <vector>

#include "evaluate/encode.h"
#include "evaluate/rows.h"
#include "evaluate/task.h"
#include "pipeline/evaluate.h"

namespace lquant::pipeline {

/// The rows of one task that are to be scored.
struct TaskRows {
  const evaluate::Task* task;
  std::size_t total = 0;                          ///< rows of the file
  std::string hash;                               ///< of the file, SHA-256
  std::vector<std::size_t> gold;                  ///< of each scored row
  std::vector<std::vector<std::size_t>> lengths;  ///< of each choice in characters, for acc_norm
  std::vector<evaluate::Prompt> prompts;
  std::vector<std::string> places;
};

/// Reads a task's files and builds its prompts; `chat` renders messages, or is empty for plain text. Throws Error naming a file that is missing.
TaskRows read_task(const evaluate::Task& task, const EvaluateRun& run, const evaluate::Chat& chat);

}  // namespace lquant::pipeline
