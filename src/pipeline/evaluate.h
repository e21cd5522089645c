#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/figures.h"
#include "run/context.h"
#include "evaluate/statistics.h"

namespace lquant::pipeline {

struct EvaluateRun {
  std::string model;                   ///< folder; as given it is part of the result's name
  std::optional<std::string> teacher;  ///< folder of a model to compare with
  std::vector<std::string> tasks;
  std::filesystem::path data;  ///< DATA/TASK/SPLIT.jsonl
  std::filesystem::path output_dir = ".";
  int batch_size = 8;  ///< times 512 tokens go through the model at once
  std::optional<int> shots;
  std::optional<int> max_tokens;  ///< inputs that the model takes; none: max_position_embeddings
  std::optional<std::int64_t> limit;
  std::int64_t seed = 123;
  bool multiturn = false;
  std::optional<bool> chat;  ///< none: when the model has a chat template
  nlohmann::ordered_json chat_arguments = nlohmann::ordered_json::object();
  bool fresh = false;
};

/// One figure of one task.
struct EvaluateFigure {
  std::string task, metric;
  evaluate::Mean model;
  std::optional<evaluate::Mean> teacher;
  std::optional<evaluate::Paired> paired;
};

struct EvaluateResult {
  std::filesystem::path file;  ///< what mlx_lm.evaluate would have written; beside it lie FILE.json and FILE.rows.jsonl
  std::vector<EvaluateFigure> figures;
  nlohmann::ordered_json report;  ///< FILE.json: results, versions, n-shot, …, config, comparison
  double rows_per_second = 0;     ///< of rows scored in this process; 0 when none was
};

/// The whole of `lquant evaluate`. Everything is read and encoded before a weight is loaded, so that bad input is told at once. Scored batches are
/// units of the run folder beside the result (docs/evaluate.md has the files' layout). Throws Error as docs/evaluate.md lists.
EvaluateResult evaluate_tasks(const EvaluateRun& run, const run::Context& context);

/// mlx_lm.evaluate's name for the results: eval_MODEL_VERSION[_SHOTS]_TASKS with "/" in MODEL become "_"; VERSION is that of the lm-eval
/// which the tasks equal. Where the file system would not take so long a name, MODEL is its last folder alone.
std::string evaluate_file_name(const EvaluateRun& run);

}  // namespace lquant::pipeline
