// `lquant report`: one page that shows what quantizing cost, where, and how it was done.
#include "pipeline/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <memory>

#include "cli/command.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/report_table.h"
#include "cli/terminal.h"
#include "hub/sources.h"

namespace lquant::cli {
namespace {

struct Options {
  pipeline::ReportRun run;
  std::string layers = "linear";
  bool json = false, trust_remote_code = false;
};

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& r = o.run;
  if (o.layers == "none") refuse_idle(command, {"--layer-samples"}, "with --layers none, which puts nothing in alone; leave out one or the other");
  if (std::filesystem::path(r.text.data).extension() == ".txt")
    refuse_idle(command, {"--seed"}, "on a .txt file, which is read from its beginning; leave it out");
  for (const auto& folder : r.folders) check_model("the folder's path", folder);
  check_model("--teacher", r.teacher);
  check_text("--data-path", r.text.data);
  if (r.overwrite || !std::filesystem::exists(r.output)) check_new_file("--output", r.output);
}

int run(Options& o, run::Stop& stop) {
  o.run.alone = o.layers == "linear" ? pipeline::AloneBy::linear : o.layers == "block" ? pipeline::AloneBy::block : pipeline::AloneBy::none;
  const auto events = events_on_stderr(/*quiet=*/o.json);
  const run::Context context(*events, stop);
  for (auto& folder : o.run.folders) folder = hub::model(folder, context);
  o.run.teacher = hub::model(o.run.teacher, context);
  o.run.text.data = hub::rows(std::filesystem::path(o.run.text.data), static_cast<int>(o.run.text.num_samples), o.run.text.seed, context).string();
  const auto report = pipeline::report(o.run, context);
  if (o.json)
    print_json(report.to_json());
  else
    print_table(report, isatty(STDOUT_FILENO) == 1);
  context.line(fmt::format("saved to {}", o.run.output.string()));
  return 0;
}

}  // namespace

void add_report(CLI::App& app, Run& chosen) {
  auto* command =
      app.add_subcommand("report", "Write a page about quantized folders: what was lost, where and how each was made");
  auto o = std::make_shared<Options>();
  auto& r = o->run;
  r.output = "report.html";
  command->add_option("folders", r.folders, "Quantized model folders")->required();
  command->add_option("--teacher", r.teacher, "The full-precision model that they were made from: a folder, or a .gguf file")->required();
  command->add_option("--data-path,--text", r.text.data, "A .txt or .jsonl file, or a folder with train.jsonl")->required();
  command->add_option("--output", r.output, "The page")->capture_default_str();
  command->add_flag("--overwrite", r.overwrite, "Replace a page that exists");
  command->add_option("--layers", o->layers, "What is put into the teacher alone: each linear, each block (many linears are many passes), or none")
      ->capture_default_str()
      ->check(CLI::IsMember({"linear", "block", "none"}));
  command->add_option("--layer-samples", r.alone_rows, "Rows that judge what is put in alone; -1: all that are scored")
      ->capture_default_str()
      ->check(kCountOrAll);
  command->add_option("--tokens", r.worst, "Worst tokens to show of each folder")->capture_default_str()->check(CLI::Range(0, 1000));
  command->add_option("--batch-size", r.text.batch_size, "Rows at a time")->capture_default_str()->check(CLI::Range(1, 1 << 16));
  command->add_option("--sequence-length", r.text.sequence_length, "Tokens a row")->capture_default_str()->check(CLI::Range(1, 1 << 20));
  command->add_option("--num-samples", r.text.num_samples, "Rows to score; -1: all")->capture_default_str()->check(kCountOrAll);
  command->add_option("--seed", r.text.seed, "Seed of the order of .jsonl rows")->capture_default_str()->check(kSeed);
  command->add_flag("--fresh", r.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--json", o->json, "Print the page's data as JSON on stdout too");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o](run::Stop& stop) { return run(*o, stop); });
}

}  // namespace lquant::cli
