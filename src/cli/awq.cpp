// `lquant awq`: mlx_lm.awq's flags, and more.
#include "pipeline/cascade.h"

#include <fmt/format.h>
#include <mlx/distributed/distributed.h>

#include <memory>

#include "base/error.h"
#include "cli/command.h"
#include "cli/outcome.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/terminal.h"
#include "hub/sources.h"

namespace lquant::cli {
namespace {

struct Options {
  pipeline::AwqRun run;
  std::string then;
  std::optional<int> then_samples;
  std::string inputs = "auto";
  bool no_duo = false, no_clip = false, json = false, trust_remote_code = false;
};

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& r = o.run;
  if (o.then.empty() && o.then_samples) throw UsageError("--then-samples is for a method that follows; give --then with it");
  if (o.then == "dwq") {
    if (r.rows.data.size() != 1) throw UsageError("--then dwq takes one file or folder of --data-path; put the rows together");
    if (r.rows.sequence_length < 2) throw UsageError("--then dwq needs a --sequence-length of 2 tokens at least");
    if (r.format.bits == 8 && !r.plan) throw UsageError("--then dwq has nothing to train at --bits 8; give 2 to 6, or leave --then out");
  }
  check_format("--bits", "--group-size", r.format);
  check_format("--embed-bits", "--embed-group-size", r.embedding);
  check_new_folder("--mlx-path", r.output);
  if (r.plan) check_present("--plan", *r.plan);
  check_model("--model", r.model);
  check_texts("--data-path", r.rows.data);
  check_expert_tokens(command, r.rows);
}

/// Of the figures of awq, or of the method behind it.
std::string quality_of(const nlohmann::json& figures) {
  if (figures.contains("validation_kl"))
    return kl_words(figures.at("validation_kl"), "before training", figures.at("validation_kl_start").get<double>());
  if (figures.contains("output_error_ratio"))
    return fmt::format("error of the blocks' outputs: {:.2f} of plain rounding's", figures.at("output_error_ratio").get<double>());
  return "";
}

int run(Options& o, const CLI::App& command, run::Stop& stop) {
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  if (o.trust_remote_code) context.line("--trust-remote-code is not needed: lquant never runs code from a model folder");
  o.run.inputs = o.inputs == "full"        ? pipeline::AwqInputs::full
                 : o.inputs == "quantized" ? pipeline::AwqInputs::quantized
                                           : pipeline::AwqInputs::automatic;
  o.run.method.duo = !o.no_duo;
  o.run.method.clip = !o.no_clip;
  if (const auto flags = given_of(command, {"--embed-bits", "--embed-group-size"}); o.run.plan && !flags.empty())
    context.line(fmt::format("--plan goes before {} where it names the embedding", flags));
  const auto given = o.run.model.string();
  o.run.model = hub::model(o.run.model, context);
  o.run.rows.data = hub::rows(o.run.rows.data, o.run.rows.num_samples, o.run.rows.seed, context);
  const auto figures = o.then.empty() ? pipeline::awq(o.run, context).to_json() : pipeline::cascade({o.run, o.then, o.then_samples}, context);
  if (o.json) print_json(figures);
  tell_outcome({.output = o.run.output, .original = given, .quality = quality_of(figures)}, context);
  return 0;
}

}  // namespace

void add_awq(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("awq", "Scale channels by their activations, search ranges, then round (AWQ)");
  auto o = std::make_shared<Options>();
  auto& r = o->run;
  command->add_option("--model,-m", r.model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--mlx-path", r.output, "Where to save the result")->capture_default_str();
  command->add_option("--bits", r.format.bits, "Bits per weight: 2, 3, 4, 5, 6 or 8")->capture_default_str();
  command->add_option("--group-size", r.format.group_size, "Weights that share a scale: 32, 64 or 128")->capture_default_str();
  command->add_option("--embed-bits", r.embedding.bits, "Bits of the embedding, and of linears whose rows the group size does not divide")
      ->capture_default_str();
  command->add_option("--embed-group-size", r.embedding.group_size, "Group size of these")->capture_default_str();
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
  command->add_option("--n-grid", r.method.grid, "Exponents that are tried for each edge's scales")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command
      ->add_option("--inputs", o->inputs,
                   "Whose activations count: 'quantized' (earlier blocks as they have become), 'full', or 'auto' (whichever helps a block more)")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "quantized", "full"}));
  command->add_flag("--no-duo", o->no_duo, "Scales by activations alone, not by weights too");
  command->add_flag("--no-clip", o->no_clip, "Each group's minimum and maximum instead of searched ranges");
  command->add_option("--then", o->then, "Method that follows: 'gptq' on the scaled model, or 'dwq' from the result")
      ->check(CLI::IsMember({"gptq", "dwq"}));
  command->add_option("--then-samples", o->then_samples, "Its rows (default: of gptq the same, of dwq 1024)")->check(kCount);
  command->add_flag("--fresh", r.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--json", o->json, "Print the figures as JSON on stdout");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o, command](run::Stop& stop) { return run(*o, *command, stop); });
}

}  // namespace lquant::cli
