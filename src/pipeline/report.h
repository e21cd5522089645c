#pragma once

#include <filesystem>
#include <vector>

#include "base/figures.h"
#include "run/context.h"
#include "evaluate/report.h"
#include "pipeline/perplexity.h"

namespace lquant::pipeline {

/// What is put into the teacher alone: each linear, all of a block's at once, or nothing.
enum class AloneBy { linear, block, none };

struct ReportRun {
  std::vector<std::filesystem::path> folders;
  std::filesystem::path teacher;
  ScoredText text;
  AloneBy alone = AloneBy::linear;
  std::int64_t alone_rows = 32;  ///< the first so many rows judge what is put in alone; −1: all
  int worst = 20;                ///< tokens shown
  std::filesystem::path output;  ///< an HTML file
  bool overwrite = false;
  bool fresh = false;  ///< starts over instead of continuing an interrupted run
};

/// Measures the folders against the teacher and writes the page, all of it or none. Of each model one block is in memory at a time. Weights that AWQ
/// has scaled are put into the teacher unscaled. Figures of what is put in alone are kept beside the output as they are made: a killed run goes on
/// from them.
/// Throws Error for an output that exists (unless `overwrite`) before any work; for bad folders and data; for a folder of another architecture or
/// tokenizer than the teacher's.
evaluate::Report report(const ReportRun& options, const run::Context& context);

}  // namespace lquant::pipeline
