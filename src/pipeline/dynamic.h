#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/figures.h"
#include "codec/format.h"
#include "pipeline/rows.h"
#include "pipeline/sensitivities.h"
#include "plan/choose.h"
#include "run/context.h"

namespace lquant::pipeline {

/// How large the result may be, or how far from its teacher. One of them.
struct Target {
  std::optional<double> bits;         ///< per weight, of the whole model
  std::optional<std::int64_t> bytes;  ///< of all tensors
  std::optional<double> kl;           ///< predicted, nats per token: the smallest model with no more
};

/// Names a target and the bounds on bits among a run's options.
void record_budget(nlohmann::json& options, const Target& target, const std::vector<plan::Limit>& floors, const std::vector<plan::Limit>& ceilings);

/// What a command aims at when no target is given.
struct DefaultTarget {
  double bits;   ///< per weight, where the formats reach them
  double share;  ///< else so far on the way from the fewest bits that they reach to the most
};

/// Who decides: the exact knapsack, or mlx_lm's threshold on the sensitivity per weight.
enum class Rule { exact, threshold };

struct DynamicRun {
  std::filesystem::path model, output = "mlx_model";
  codec::Format low{codec::Mode::affine, 4, 64}, high{codec::Mode::affine, 5, 64};
  std::vector<int> widths;  ///< not empty: a free choice over these bits and `groups` instead of low and high
  std::vector<int> groups = {32, 64, 128};
  Target target;  ///< default: 5 bits per weight (target_or_default)
  Rule rule = Rule::exact;
  bool tie = false;
  bool followed = false;  ///< by methods that mend low bits most: a format costs what second order says and no more (docs/methods/dynamic.md)
  std::vector<plan::Limit> floors, ceilings;
  /// Tokens that sensitivities are taken on, in whole batches of eight rows: plans from 8,192 and from 57,000 cost the same to a thousandth
  /// (docs/methods/dynamic.md).
  int sensitivity_tokens = 16384;
  bool measure = false;                                ///< sensitivities are measured, linear by linear, not predicted alone
  std::optional<std::filesystem::path> sensitivities;  ///< of an earlier run, or of mlx_lm
  std::string sensitivities_name;               ///< files are written as NAME_sensitivities.json and NAME_sensitivities.lquant.json; empty: none are
  std::optional<std::filesystem::path> pareto;  ///< where the curve of best allocations goes
  std::optional<std::filesystem::path> plan_only;  ///< where the plan goes, instead of a quantized model
  RowOptions rows;
  bool fresh = false;
};

struct DynamicResult {
  double bits_per_weight = 0, predicted_kl = 0;
  double predicted_gap = 0;  ///< no plan of these bytes is predicted to be better by more than this
  std::int64_t bytes = 0;
  std::optional<double> kl, kl_se, perplexity, teacher_perplexity;  ///< on rows held out; none with plan_only; kl_se NaN from one row
  double sensitivity_time = 0, total_time = 0;                      ///< seconds of this process
  double tokens = 0;                                                ///< that the sensitivities were taken on
  nlohmann::json to_json() const;
};

/// What options alone can tell: throws UsageError for what excludes each other, Error for formats that do not exist and an output that does.
void check_options(const DynamicRun& options);

/// The whole of `lquant dynamic_quant`: sensitivities, plan, range search, output, judgement. Journalled like every command.
/// Throws Error (nothing is left under the output's name) or Interrupted (state saved).
DynamicResult dynamic_quant(const DynamicRun& options, const run::Context& context);

/// The run's own target, or, when it has none, the default one, which is said when it is not the usual number of bits. `dense_bytes`: of an element
/// that stays dense.
Target target_or_default(const DynamicRun& options, const DefaultTarget& usual, const model::ModelSpec& spec, int dense_bytes,
                         const run::Context& context);

/// Refuses a target that no choice of formats can meet, told from shapes alone. `options` have a target. Throws Error naming the range that can be
/// met.
void check_target(const DynamicRun& options, const model::ModelSpec& spec, int dense_bytes);

}  // namespace lquant::pipeline
