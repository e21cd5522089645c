#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/units.h"

// What dynamic_quant and auto are asked alike: how large the result may be, and which bits which linears may have.
namespace lquant::cli {

/// Their texts as given.
struct BudgetTexts {
  std::optional<std::string> size;
  std::vector<std::string> floors, ceilings;
};

/// --target-bpw, --target-size, --max-kl, --tie, --floor, --ceiling, --measure, of a run with `target`, `tie` and `measure`. All must outlive
/// parsing.
template <class RunOptions>
void add_budget(CLI::App& command, BudgetTexts& texts, RunOptions& run, const std::string& default_bits) {
  auto* bits =
      command.add_option("--target-bpw", run.target.bits, "Bits per weight of the whole model (default: " + default_bits + ")")->check(kPositive);
  auto* size = command.add_option("--target-size", texts.size, "Size of the model instead, such as 3.5GB")->excludes(bits);
  command.add_option("--max-kl", run.target.kl, "The smallest model with at most this predicted KL divergence instead")
      ->check(kPositive)
      ->excludes(bits)
      ->excludes(size);
  command.add_flag("--tie", run.tie, "q, k and v of a block share a format, and so do gate and up");
  command.add_option("--floor", texts.floors, "PATTERN=BITS: the fewest bits of linears whose path matches, such as '*.down_proj=4'");
  command.add_option("--ceiling", texts.ceilings, "PATTERN=BITS: the most bits of linears whose path matches");
  command.add_flag("--measure", run.measure, "Measure each linear's divergence instead of predicting it from gradients alone");
}

/// Throws UsageError naming the flag.
inline void check_budget(const BudgetTexts& texts) {
  if (texts.size) parse_bytes("--target-size", *texts.size);
  for (const auto& text : texts.floors) parse_limit("--floor", text);
  for (const auto& text : texts.ceilings) parse_limit("--ceiling", text);
}

/// Takes the texts over into the run. Throws UsageError naming the flag.
template <class RunOptions>
void take_budget(const BudgetTexts& texts, RunOptions& run) {
  if (texts.size) run.target.bytes = parse_bytes("--target-size", *texts.size);
  for (const auto& text : texts.floors) run.floors.push_back(parse_limit("--floor", text));
  for (const auto& text : texts.ceilings) run.ceilings.push_back(parse_limit("--ceiling", text));
}

}  // namespace lquant::cli
