// `lquant auto`: the best model for a budget.
#include "pipeline/auto.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "base/nearest.h"
#include "cli/budget.h"
#include "cli/command.h"
#include "cli/embedded.h"
#include "cli/outcome.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "hub/sources.h"

namespace lquant::cli {
namespace {

struct Options {
  pipeline::AutoRun run;
  BudgetTexts budget;
  bool json = false;
};

constexpr int kBlockBits = 3;  // the widths that block-wise training is for

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& r = o.run;
  check_budget(o.budget);
  check_widths("--widths", r.widths);
  check_groups("--group-sizes", r.groups);
  const std::vector<std::string> steps{"awq", "gptq", "blocks", "dwq"};
  for (const auto& step : r.steps)
    if (std::find(steps.begin(), steps.end(), step) == steps.end())
      throw UsageError(fmt::format("--steps {} is none of {}{}", step, fmt::join(steps, ", "), did_you_mean(step, steps)));
  refuse_repeated("--steps", r.steps);
  const bool low = std::any_of(r.widths.begin(), r.widths.end(), [](int bits) { return bits <= kBlockBits; });
  if (command.count("--steps") > 0 && !low && std::find(r.steps.begin(), r.steps.end(), "blocks") != r.steps.end())
    throw UsageError("--steps blocks has no effect without 2 or 3 among --widths, for it trains what has few bits; leave it out, or add to --widths");
  if (!r.dry_run) check_new_folder("--mlx-path", r.output);
  if (!r.model.empty()) check_model("--model", r.model);
  check_texts("--data-path", r.data);
}

/// "-0.00210 ± 0.00030".
std::string signed_difference(const evaluate::Mean& difference) {
  return (difference.value > 0 ? "+" : "") + plus_minus(difference.value, difference.error, 5);
}

std::string table_of(const pipeline::AutoResult& result) {
  Table table({Align::left, Align::right, Align::right, Align::right, Align::right, Align::left});
  table.add({"step", "KL to the original", "change", "time", "expected"});
  for (const auto& s : result.steps)
    table.add({s.name, plus_minus(s.kl->value, s.kl->error, 4), s.difference ? signed_difference(*s.difference) : "", format_duration(s.time),
               s.expected_time > 0 ? format_duration(s.expected_time) : "", s.kept ? "kept" : "undone"});
  return table.text();
}

/// The best step's, beside what the choice of bits alone had brought.
std::string quality_of(const pipeline::AutoResult& result) {
  double best = INFINITY;
  for (const auto& step : result.steps)
    if (step.kept) best = std::min(best, step.kl->value);
  const double first = result.steps.front().kl->value;
  return best < first ? kl_words(best, "rounding with these bits", first) : kl_words(best);
}

int run(Options& o, run::Stop& stop) {
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  auto& r = o.run;
  if (r.model.empty()) r.model = embedded_model();
  const auto given = r.model.string();
  r.model = hub::model(r.model, context);
  if (!r.dry_run) r.data = hub::rows(r.data, r.num_samples, r.seed, context);
  take_budget(o.budget, r);
  const auto result = pipeline::auto_quantize(r, context);
  if (o.json) print_json(result.to_json());
  if (r.dry_run) return 0;
  if (!o.json) put(table_of(result));
  tell_outcome({.output = r.output, .original = given, .quality = quality_of(result)}, context);
  return 0;
}

}  // namespace

void add_auto(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("auto", "The best model for a budget: mixed precision, then AWQ, GPTQ and DWQ as they help");
  auto o = std::make_shared<Options>();
  auto& r = o->run;
  command->add_option("--model,-m", r.model,
                      "Model: a folder, a .gguf file, or org/name on the Hugging Face hub (default: the small model that comes with lquant)");
  command->add_option("--mlx-path", r.output, "Where to save the result")->capture_default_str();
  add_budget(*command, o->budget, r, "4");
  command->add_option("--data-path", r.data, ".jsonl, .txt or .parquet files, org/name of a data set on the hub, or 'self': sampled from the model")
      ->capture_default_str();
  command->add_option("--num-samples", r.num_samples, "Rows to train on; 128 of them serve the other steps, and 48 more judge")
      ->capture_default_str()
      ->check(kCount);
  command->add_option("--sequence-length", r.sequence_length, "Tokens of a row")->capture_default_str()->check(CLI::Range(2, 1 << 20));
  add_expert_tokens(*command, r.expert_tokens);
  command->add_option("--seed", r.seed, "Seed of the choice of rows")->capture_default_str()->check(kSeed);
  command->add_option("--widths", r.widths, "Bits to choose from")->capture_default_str();
  command->add_option("--group-sizes", r.groups, "Groups to choose from")->capture_default_str();
  command->add_option("--steps", r.steps, "What to try behind the allocation, of awq, gptq, blocks and dwq")->capture_default_str();
  command->add_flag("--dry-run", r.dry_run, "Say what would be done, in what time, memory and size, and stop");
  command->add_flag("--fresh", r.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--json", o->json, "Print the figures as JSON on stdout");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o](run::Stop& stop) { return run(*o, stop); });
}

}  // namespace lquant::cli
