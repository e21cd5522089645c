#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/progress.h"
#include "evaluate/quality.h"

namespace lquant::pipeline {

struct PerplexityOptions {
  std::filesystem::path model;
  std::optional<std::filesystem::path> teacher;
  std::string data;  ///< .txt, .jsonl or a folder with train.jsonl
  int sequence_length = 512;
  std::int64_t num_samples = 256;  ///< rows; −1: all
  int batch_size = 8;
  std::uint64_t seed = 123;
};

/// Rows of `sequence_length` tokens: of a text in order from its beginning, of .jsonl rows drawn in seeded order and joined, as
/// mlx_lm.perplexity does. Throws Error for bad data or models whose vocabularies differ.
evaluate::Quality perplexity(const PerplexityOptions& options, Log& log);

}  // namespace lquant::pipeline
