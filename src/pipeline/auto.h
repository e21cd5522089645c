#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/figures.h"
#include "evaluate/row_mean.h"
#include "pipeline/dynamic.h"
#include "run/context.h"

namespace lquant::pipeline {

/// Rows for the steps that need statistics alone: more change little (docs/methods/gptq.md).
inline constexpr int kStatisticRows = 128;

struct AutoRun {
  std::filesystem::path model, output = "mlx_model";
  Target target;  ///< default: 4 bits per weight
  std::vector<int> widths = {2, 3, 4, 5, 6, 8}, groups = {32, 64, 128};
  bool tie = false;
  std::vector<plan::Limit> floors, ceilings;
  bool measure = false;
  std::vector<std::string> steps = {"awq", "gptq", "blocks", "dwq"};  ///< those to try behind the allocation, in this order
  std::vector<std::string> data = {"self"};
  int num_samples = 1024;  ///< rows for dwq; the other steps take kStatisticRows of them
  int sequence_length = 512;
  std::uint64_t seed = 123;
  std::optional<int> expert_tokens;  ///< RowOptions'; dwq trains on all rows
  bool dry_run = false, fresh = false;
};

/// What is expected of a step, or what came of it.
struct AutoStep {
  std::string name;
  double expected_time = 0, expected_memory = 0;    ///< seconds, bytes
  std::optional<evaluate::Mean> kl = std::nullopt;  ///< on rows held out, of the model that the step made
  /// That less the KL of the best model before the step, by evaluate::paired_difference on the same rows; none for the first step.
  std::optional<evaluate::Mean> difference = std::nullopt;
  bool kept = false;
  double time = 0;  ///< seconds, of this process
};

struct AutoResult {
  double bits_per_weight = 0, predicted_kl = 0;
  std::int64_t bytes = 0;
  std::vector<AutoStep> steps;
  nlohmann::json to_json() const;
};

/// The whole of `lquant auto`: allocates formats to the budget, then tries AWQ, GPTQ, block-wise training (where some linear has at most 3 bits) and
/// DWQ, each from the best so far. What it is going to do is said first; with `dry_run` that is all, and nothing is read but headers. Finished
/// steps wait in the run folder. Throws Error (nothing is left under the output's name) or Interrupted.
///
/// A step is kept when its KL on the rows held out is lower than that of the best model before it, and else undone:
///     Σ_r (s_r − b_r) / Σ_r n_r < 0
/// with s_r and b_r the KL of the step's and of the best model summed over the n_r tokens of row r. Both answer for the same rows, so the standard
/// error of this difference (evaluate::paired_difference) is much less than that of either KL. It is shown and recorded; it does not decide: of two
/// models of equal size the one with the lower mean is the better choice, however small the difference, and one row has no error at all.
AutoResult auto_quantize(const AutoRun& options, const run::Context& context);

}  // namespace lquant::pipeline
