// `lquant dwq`: mlx_lm.dwq's flags, and more.
#include "pipeline/dwq.h"

#include <fmt/format.h>

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

/// mlx_lm's default too.
constexpr const char* kDataSet = "allenai/tulu-3-sft-mixture";

struct Options {
  pipeline::DwqRun run;
  std::optional<std::filesystem::path> data;
  std::string codes = "move";
  bool json = false, trust_remote_code = false;
};

/// The rows to learn from. Who named none is told, where the default cannot be had, what works without a network.
std::string data_of(const Options& o, const run::Context& context) {
  const int rows = o.run.num_samples + o.run.num_valid;
  if (o.data) return hub::rows(*o.data, rows, o.run.seed, context).string();
  try {
    return hub::rows(kDataSet, rows, o.run.seed, context).string();
  } catch (const Error& e) {
    throw Error(fmt::format("{}; or learn from texts that the model itself writes, with --data-path self", e.what()));
  }
}

/// All that options alone can tell.
void check(const Options& o, const CLI::App& command) {
  const auto& r = o.run;
  if (r.quantized_model && !r.targets_only)
    refuse_idle(command, {"--bits", "--group-size", "--plan"},
                "with --quantized-model, whose weights keep the formats that they have; leave out one or the other");
  if (!r.target_dir)
    refuse_idle(command, {"--targets"}, "without --target-dir, the folder that would hold them; give it, or leave --targets out");
  if (o.data && (*o.data == "self" || o.data->extension() == ".txt"))
    refuse_idle(command, {"--mask-prompt"}, "on texts without prompts (self, .txt); give chat or prompt/completion rows, or leave it out");
  check_format("--bits", "--group-size", r.format);
  if (r.format.bits == 8 && !r.plan && !r.quantized_model && !r.targets_only)
    throw UsageError("--bits 8 leaves nothing to train; give 2 to 6, or round to 8 bits by lquant convert -q --q-bits 8");
  if (r.targets_only && !r.target_dir) throw UsageError("--targets-only needs --target-dir, the folder to write them to");
  if (!r.targets_only) check_new_folder("--mlx-path", r.output);
  if (r.target_dir) check_folder_to_fill("--target-dir", *r.target_dir);
  if (r.plan) check_present("--plan", *r.plan);
  check_model("--model", r.model);
  if (r.quantized_model) check_model("--quantized-model", *r.quantized_model);
  if (o.data) check_texts("--data-path", {o.data->string()});
}

int run(Options& o, const CLI::App& command, run::Stop& stop) {
  const auto group = mlx::core::distributed::init();
  const auto events = events_on_stderr(/*quiet=*/group.rank() != 0);
  const run::Context context(*events, stop, group);
  if (o.trust_remote_code) context.line("--trust-remote-code is not needed: lquant never runs code from a model folder");
  if (o.run.targets_only && context.rank() == 0)
    remark_idle(command,
                {"--mlx-path", "--bits", "--group-size", "--plan", "--quantized-model", "--learning-rate", "--temperature", "--codes",
                 "--grad-checkpoint", "--json"},
                "with --targets-only, which ends before anything is quantized");
  const auto given = o.run.model.string();
  o.run.model = hub::model(o.run.model, context);
  o.run.quantized_model = hub::model(o.run.quantized_model, context);
  o.run.data = data_of(o, context);
  o.run.move_codes = o.codes == "move";
  const auto result = pipeline::dwq(o.run, context);
  if (group.rank() != 0) return 0;
  if (o.json && !o.run.targets_only) print_json(result.to_json());
  if (o.run.targets_only)
    context.line(fmt::format("targets are in {}; use them by --target-dir", o.run.target_dir->string()));
  else
    tell_outcome({.output = o.run.output, .original = given, .quality = kl_words(result.best_kl, "before training", result.start_kl)}, context);
  return 0;
}

}  // namespace

void add_dwq(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("dwq", "Learn low-bit weights by distillation from the full-precision model (DWQ)");
  auto o = std::make_shared<Options>();
  auto& r = o->run;
  command
      ->add_option("--model,-m", r.model,
                   "The teacher: a model folder, a .gguf file, or org/name on the hub. Without --quantized-model it is also what gets quantized")
      ->required();
  command->add_option("--quantized-model", r.quantized_model, "A quantized model to improve (the student)");
  command->add_option("--mlx-path", r.output, "Where to save the result")->capture_default_str();
  command->add_option("--bits", r.format.bits, "Bits per weight: 2, 3, 4, 5, 6 or 8")->capture_default_str();
  command->add_option("--group-size", r.format.group_size, "Weights that share a scale: 32, 64 or 128")->capture_default_str();
  command->add_option("--plan", r.plan, "JSON file of formats by path, as config.json's quantization block has them; they go before --bits");
  command->add_option("--num-samples", r.num_samples, "Rows to train on")->capture_default_str()->check(kCount);
  command->add_option("--max-seq-length", r.max_seq_length, "Longer rows are cut; shorter ones are packed together")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 20));
  command->add_option("--seed", r.seed, "Seed of the choice and order of rows")->capture_default_str()->check(kSeed);
  command->add_option("--learning-rate", r.learning_rate, "Peak relative step of scales and biases (default: chosen by lquant)")->check(kPositive);
  command->add_option("--batch-size", r.batch_size, "Rows per step")->capture_default_str()->check(CLI::Range(1, 1 << 16));
  command->add_option(
      "--data-path", o->data,
      fmt::format("A .jsonl, .txt or .parquet file, a folder with train.jsonl, org/name[:configuration[/split]] of a data set on the hub, or 'self': "
                  "sampled from the model (default: {})",
                  kDataSet));
  command->add_flag("--mask-prompt", r.mask_prompt, "No loss on prompts (chat and prompt/completion rows)");
  command->add_flag("--grad-checkpoint", r.grad_checkpoint, "Compute blocks twice to need less memory");
  command->add_option("--temperature", r.temperature, "Of both distributions in the loss")->capture_default_str()->check(kPositive);
  command->add_option("--codes", o->codes, "'move': the integer codes are trained too; 'fixed': scales and biases alone, as mlx_lm does")
      ->capture_default_str()
      ->check(CLI::IsMember({"move", "fixed"}));
  command->add_option("--target-dir", r.target_dir, "Folder of the teacher's targets: read if complete, else made");
  command->add_flag("--targets-only", r.targets_only, "Make the targets and stop");
  command->add_option("--targets", r.targets, "What to keep in --target-dir: 'hidden' states (exact) or 'topk' logits")
      ->capture_default_str()
      ->check(CLI::IsMember({"hidden", "topk"}));
  command->add_option("--num-valid", r.num_valid, "Rows held out for validation")->capture_default_str()->check(kCount);
  command->add_flag("--fresh", r.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--json", o->json, "Print the figures as JSON on stdout");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o, command](run::Stop& stop) { return run(*o, *command, stop); });
}

}  // namespace lquant::cli
