#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/figures.h"
#include "calibration/batches.h"
#include "evaluate/quality.h"
#include "model/spec.h"
#include "run/context.h"
#include "text/tokenizer.h"

namespace lquant::pipeline {

/// What a model is judged on.
struct ScoredText {
  std::string data;  ///< .txt, .jsonl or a folder with train.jsonl
  int sequence_length = 512;
  std::int64_t num_samples = 256;  ///< rows; −1: all
  int batch_size = 8;
  std::uint64_t seed = 123;

  /// The file that is read: `data`, or the train.jsonl in it.
  std::filesystem::path file() const;
  /// Rows of `sequence_length` tokens: of a text in order from its beginning, of .jsonl rows drawn in seeded order and joined, as
  /// mlx_lm.perplexity does. Throws Error for bad data, tokens outside the model's table among it, with the file and the row; and for rows longer
  /// than the positions that the model knows.
  std::vector<calibration::Batch> batches(const text::Tokenizer& tokenizer, const model::ModelSpec& spec) const;
};

struct PerplexityOptions : ScoredText {
  std::filesystem::path model;
  std::optional<std::filesystem::path> teacher;
};

/// Throws Error for bad data, models whose vocabularies differ, and figures that are not numbers.
evaluate::Quality perplexity(const PerplexityOptions& options, const run::Context& context);

}  // namespace lquant::pipeline
