// `lquant gptq`: mlx_lm.gptq's flags, and more.
#include "pipeline/gptq.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/outcome.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/terminal.h"
#include "hub/sources.h"

namespace lquant::cli {
namespace {

struct Options {
  pipeline::GptqRun run;
  std::string act_order = "gar", asymmetric = "auto";
  bool parallel = false, sequential = false, no_range_search = false, range_search = false, json = false, trust_remote_code = false;
};

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& r = o.run;
  check_format("--bits", "--group-size", r.format);
  check_format("--fallback-bits", "--fallback-group-size", r.fallback);
  if (r.embed_bits) check_bits("--embed-bits", *r.embed_bits);
  check_new_folder("--mlx-path", r.output);
  if (r.plan) check_present("--plan", *r.plan);
  if (r.scaled) check_present("--scales", *r.scaled);
  check_model("--model", r.model);
  check_texts("--data-path", r.rows.data);
  check_expert_tokens(command, r.rows);
}

int run(Options& o, run::Stop& stop) {
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  if (o.trust_remote_code) context.line("--trust-remote-code is not needed: lquant never runs code from a model folder");
  if (o.run.plan && o.run.embed_bits) context.line("--plan goes before --embed-bits where it names the embedding");
  const auto given = o.run.model.string();
  o.run.model = hub::model(o.run.model, context);
  o.run.rows.data = hub::rows(o.run.rows.data, o.run.rows.num_samples, o.run.rows.seed, context);
  o.run.method.act_order = o.act_order == "off"   ? quantize::ActOrder::off
                           : o.act_order == "gar" ? quantize::ActOrder::gar
                                                  : quantize::ActOrder::fixed;
  o.run.asymmetric = o.asymmetric == "off"  ? pipeline::Asymmetric::off
                     : o.asymmetric == "on" ? pipeline::Asymmetric::on
                                            : pipeline::Asymmetric::automatic;
  o.run.sequential = !o.parallel;
  o.run.method.range_search = !o.no_range_search;
  const auto result = pipeline::gptq(o.run, context);
  if (o.json) print_json(result.to_json());
  tell_outcome({.output = o.run.output, .original = given}, context);
  return 0;
}

}  // namespace

void add_gptq(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("gptq", "Quantize with error feedback by second moments of the inputs (GPTQ)");
  auto o = std::make_shared<Options>();
  auto& r = o->run;
  command->add_option("--model,-m", r.model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--mlx-path", r.output, "Where to save the result")->capture_default_str();
  command->add_option("--bits", r.format.bits, "Bits per weight: 2, 3, 4, 5, 6 or 8")->capture_default_str();
  command->add_option("--group-size", r.format.group_size, "Weights that share a scale: 32, 64 or 128")->capture_default_str();
  command->add_option("--fallback-bits", r.fallback.bits, "Bits of the embedding, and of linears whose rows the group size does not divide")
      ->capture_default_str();
  command->add_option("--fallback-group-size", r.fallback.group_size, "Group size of these")->capture_default_str();
  command->add_option("--embed-bits", r.embed_bits, "Bits of the embedding (default: the fallback's)");
  command->add_option("--plan", r.plan, "JSON file of formats by path, as config.json's quantization block has them; they go before all other bits");
  command->add_option("--num-samples", r.rows.num_samples, "Rows of the data to use; -1: all of them (of 'self': 128)")
      ->capture_default_str()
      ->check(kCountOrAll);
  command->add_option("--sequence-length", r.rows.sequence_length, "Tokens of a row")->capture_default_str()->check(CLI::Range(1, 1 << 20));
  add_expert_tokens(*command, r.rows.expert_tokens);
  command->add_option("--seed", r.rows.seed, "Seed of the choice of rows")->capture_default_str()->check(kSeed);
  command
      ->add_option("--data-path", r.rows.data, ".jsonl, .txt or .parquet files, org/name of a data set on the hub, or 'self': sampled from the model")
      ->capture_default_str();
  command->add_option("--scales", r.scaled, "Folder that awq has written: its scales are folded into the model first");
  command
      ->add_option("--act-order", o->act_order, "Order of the columns: 'off', 'static' (largest moments first) or 'gar' (the same, group by group)")
      ->capture_default_str()
      ->check(CLI::IsMember({"off", "static", "gar"}));
  command->add_option("--damp", r.method.damp, "Share of the mean that is added to a Hessian's diagonal")->capture_default_str()->check(kPositive);
  command->add_option("--sweeps", r.method.sweeps, "Passes of coordinate descent behind the solve; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  auto* parallel = command->add_flag("--parallel-hessians", o->parallel, "All Hessians of a block at once, from its full-precision weights");
  command->add_flag("--sequential", o->sequential, "Inside a block, each linear sees what the ones before it have become (the default)")
      ->excludes(parallel);
  command
      ->add_option("--asymmetric", o->asymmetric, "Aim at the full-precision model's outputs: 'auto' (as far as held-out rows gain), 'on' or 'off'")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "on", "off"}));
  auto* no_search = command->add_flag("--no-range-search", o->no_range_search, "Each group's minimum and maximum instead of the best range");
  command->add_flag("--range-search", o->range_search, "Search each group's range by the Hessian's diagonal (the default)")->excludes(no_search);
  command
      ->add_option("--train-blocks", r.training.epochs,
                   "Passes over the rows in which each quantized block learns to give what the full-precision one does; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  command->add_flag("--fresh", r.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--json", o->json, "Print the figures as JSON on stdout");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o](run::Stop& stop) { return run(*o, stop); });
}

}  // namespace lquant::cli
