// `lquant perplexity`: how well a model predicts a text and, with a teacher, how far it is from it.
#include "pipeline/perplexity.h"

#include <fmt/format.h>

#include <memory>

#include "artifact/record.h"
#include "base/error.h"
#include "base/figures.h"
#include "base/words.h"
#include "cli/command.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/terminal.h"
#include "hub/sources.h"
#include "pipeline/report.h"

namespace lquant::cli {
namespace {

struct Options {
  pipeline::PerplexityOptions run;
  std::filesystem::path report;
  bool record = false, json = false, trust_remote_code = false;
};

/// The same figures, and a page about them. Nothing is put into the teacher alone: `lquant report` does that.
evaluate::Quality with_report(const Options& o, const run::Context& context) {
  pipeline::ReportRun r;
  r.folders = {o.run.model};
  r.teacher = *o.run.teacher;
  r.text = o.run;
  r.output = o.report;
  r.alone = pipeline::AloneBy::none;
  const auto quality = pipeline::report(r, context).folders.front().quality;
  context.line(fmt::format("saved to {}", o.report.string()));
  return quality;
}

/// Puts the figures into the model's lquant.json, from which the model card is made; those of the same text make way.
void record(const pipeline::PerplexityOptions& run, const evaluate::Quality& quality) {
  auto entry = quality.to_json();
  entry["text"] = name_of(run.file());
  artifact::add_measured(run.model, entry);
}

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& r = o.run;
  if (!o.report.empty() && !r.teacher) throw UsageError("--report shows how far a model is from its teacher; give --teacher with it");
  if (std::filesystem::path(r.data).extension() == ".txt")
    refuse_idle(command, {"--seed"}, "on a .txt file, which is read from its beginning; leave it out");
  check_model("--model", r.model);
  if (r.teacher) check_model("--teacher", *r.teacher);
  check_text("--data-path", r.data);
  if (!o.report.empty()) check_new_file("--report", o.report);
  if (o.record && std::filesystem::exists(r.model)) check_record(r.model);
  remark_accepted(command, "--trust-remote-code", "lquant never runs code from a model folder");
}

int run(Options& o, run::Stop& stop) {
  const auto events = events_on_stderr(/*quiet=*/o.json);
  const run::Context context(*events, stop);
  o.run.model = hub::model(o.run.model, context);
  if (o.record) check_record(o.run.model);
  o.run.teacher = hub::model(o.run.teacher, context);
  o.run.data = hub::rows(std::filesystem::path(o.run.data), static_cast<int>(o.run.num_samples), o.run.seed, context).string();
  const auto q = o.report.empty() ? pipeline::perplexity(o.run, context) : with_report(o, context);
  if (o.record) record(o.run, q);
  if (o.json) {
    print_json(q.to_json());
    return 0;
  }
  print("tokens      {}\nperplexity  {}\n", q.tokens, plus_minus(q.perplexity(), q.perplexity_se(), 4));
  if (q.has_teacher)
    print("teacher     {:.4f}\nKL          {} nats/token\nKL p99      {:.4f}\nsame top-1  {:.2f} %\n", q.teacher_perplexity(),
          plus_minus(q.kl, q.kl_se, 5), q.kl_p99, 100 * q.top1);
  return 0;
}

}  // namespace

void add_perplexity(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("perplexity", "Measure perplexity and, against a teacher, KL divergence");
  auto o = std::make_shared<Options>();
  command->add_option("--model,-m", o->run.model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--teacher", o->run.teacher, "The full-precision model to compare with");
  command->add_option("--data-path,--text", o->run.data, "A .txt or .jsonl file, or a folder with train.jsonl")->required();
  command->add_option("--batch-size", o->run.batch_size, "Rows at a time")->capture_default_str()->check(CLI::Range(1, 1 << 16));
  command->add_option("--sequence-length", o->run.sequence_length, "Tokens a row")->capture_default_str()->check(CLI::Range(1, 1 << 20));
  command->add_option("--num-samples", o->run.num_samples, "Rows to score; -1: all")->capture_default_str()->check(kCountOrAll);
  command->add_option("--seed", o->run.seed, "Seed of the order of .jsonl rows")->capture_default_str()->check(kSeed);
  command->add_option("--report", o->report, "Write an HTML page about it too (see lquant report); needs --teacher");
  command->add_flag("--record", o->record, "Keep the figures in the model's lquant.json, for its card (see lquant upload)");
  command->add_flag("--json", o->json, "Print JSON");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o](run::Stop& stop) { return run(*o, stop); });
}

}  // namespace lquant::cli
