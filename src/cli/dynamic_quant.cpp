// `lquant dynamic_quant`: mlx_lm.dynamic_quant's flags, and more.
#include "pipeline/dynamic.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "base/error.h"
#include "cli/budget.h"
#include "cli/command.h"
#include "cli/outcome.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/terminal.h"
#include "hub/sources.h"
#include "pipeline/sensitivity_files.h"

namespace lquant::cli {
namespace {

struct Options {
  pipeline::DynamicRun run;
  BudgetTexts budget;
  std::string rule = "exact", accumulation = "float32";
  bool report_ppl = false, grad_checkpoint = false, json = false, trust_remote_code = false;
};

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& r = o.run;
  if (r.widths.empty())
    refuse_idle(command, {"--group-sizes"}, "without --widths; give them, or name groups by --low-group-size and --high-group-size");
  else
    refuse_idle(command, {"--low-bits", "--low-group-size", "--high-bits", "--high-group-size"},
                "with --widths, among which each linear's bits are chosen; leave out one or the other");
  if (r.sensitivities) refuse_idle(command, {"--sensitivity-tokens"}, "with --sensitivities, which were found already; leave out one or the other");
  if (r.plan_only) refuse_idle(command, {"--mlx-path", "--report-ppl"}, "with --plan-only, which ends with the plan; leave out one or the other");
  check_format("--low-bits", "--low-group-size", r.low);
  check_format("--high-bits", "--high-group-size", r.high);
  check_widths("--widths", r.widths);
  check_groups("--group-sizes", r.groups);
  auto whole = r;
  whole.rule = o.rule == "exact" ? pipeline::Rule::exact : pipeline::Rule::threshold;
  take_budget(o.budget, whole);
  pipeline::check_options(whole);
  if (!r.plan_only) check_new_folder("--mlx-path", r.output);
  if (r.plan_only) check_new_file("--plan-only", *r.plan_only);
  if (r.pareto) check_new_file("--pareto", *r.pareto);
  if (r.sensitivities) check_present("--sensitivities", *r.sensitivities);
  check_model("--model", r.model);
  check_texts("--data-path", r.rows.data);
  check_expert_tokens(command, r.rows);
}

int run(Options& o, run::Stop& stop) {
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  if (o.trust_remote_code) context.line("--trust-remote-code is not needed: lquant never runs code from a model folder");
  if (o.grad_checkpoint) context.line("--grad-checkpoint is not needed: blocks are always computed again");
  if (o.accumulation != "float32") context.line("sums are always made in float32; --accumulation-dtype changes nothing");
  auto& r = o.run;
  r.rule = o.rule == "exact" ? pipeline::Rule::exact : pipeline::Rule::threshold;
  take_budget(o.budget, r);
  const auto given = r.model.string();
  r.model = hub::model(r.model, context);
  r.sensitivities_name = pipeline::sensitivities_name(given, /*is_path=*/r.model == given);
  r.rows.data = hub::rows(r.rows.data, r.rows.num_samples, r.rows.seed, context);
  const auto result = pipeline::dynamic_quant(r, context);
  if (o.json) print_json(result.to_json());
  if (o.report_ppl && result.perplexity && !o.json)
    print("Original PPL: {:.3f}\nQuantized PPL: {:.3f}\n", *result.teacher_perplexity, *result.perplexity);
  if (r.plan_only)
    tell_plan(*r.plan_only, given, context);
  else
    tell_outcome({.output = r.output, .original = given, .quality = result.kl ? kl_words(*result.kl) : ""}, context);
  return 0;
}

}  // namespace

void add_dynamic_quant(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("dynamic_quant", "Give each linear the precision that it needs, within a budget of bits");
  command->alias("dynamic-quant");
  auto o = std::make_shared<Options>();
  auto& r = o->run;
  command->add_option("--model,-m", r.model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--mlx-path", r.output, "Where to save the result")->capture_default_str();
  command->add_option("--seed", r.rows.seed, "Seed of the choice of rows")->capture_default_str()->check(kSeed);
  command->add_option("--sensitivities", r.sensitivities, "A file of sensitivities, of lquant or of mlx_lm, instead of finding them");
  add_budget(*command, o->budget, r, "5");
  command->add_option("--low-bits", r.low.bits, "Bits of the less sensitive linears")->capture_default_str();
  command->add_option("--low-group-size", r.low.group_size, "Their group size")->capture_default_str();
  command->add_option("--high-bits", r.high.bits, "Bits of the more sensitive linears")->capture_default_str();
  command->add_option("--high-group-size", r.high.group_size, "Their group size")->capture_default_str();
  command->add_option("--widths", r.widths, "Choose freely among these bits (such as 2 3 4 5 6 8) instead of low and high");
  command->add_option("--group-sizes", r.groups, "With --widths: the groups to choose from")->capture_default_str();
  command->add_option("--rule", o->rule, "'exact': the best allocation for the sensitivities; 'threshold': mlx_lm's rule, to compare with")
      ->capture_default_str()
      ->check(CLI::IsMember({"exact", "threshold"}));
  command->add_option("--sensitivity-tokens", r.sensitivity_tokens, "Tokens of the data that sensitivities are taken on")
      ->capture_default_str()
      ->check(kCount);
  command->add_option("--pareto", r.pareto, "Write the curve of best sizes and predicted divergences to this JSON file");
  command->add_option("--plan-only", r.plan_only, "Write the plan to this file, for --plan of other commands, and stop");
  command->add_option("--num-samples", r.rows.num_samples, "Rows of the data to use; -1: all of them (of 'self': 128). One in eight is held out")
      ->capture_default_str()
      ->check(kCountOrAll);
  command->add_option("--sequence-length", r.rows.sequence_length, "Tokens of a row")->capture_default_str()->check(CLI::Range(2, 1 << 20));
  add_expert_tokens(*command, r.rows.expert_tokens);
  command
      ->add_option("--data-path", r.rows.data, ".jsonl, .txt or .parquet files, org/name of a data set on the hub, or 'self': sampled from the model")
      ->capture_default_str();
  command->add_flag("--report-ppl", o->report_ppl, "Print the perplexity of the original and of the quantized model on the rows held out");
  command->add_flag("--grad-checkpoint", o->grad_checkpoint, "Accepted for mlx_lm's sake: blocks are always computed again");
  command->add_option("--accumulation-dtype", o->accumulation, "Accepted for mlx_lm's sake: sums are always float32")
      ->capture_default_str()
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  command->add_flag("--fresh", r.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--json", o->json, "Print the figures as JSON on stdout");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o](run::Stop& stop) { return run(*o, stop); });
}

}  // namespace lquant::cli
