// `lquant evaluate`: mlx_lm.evaluate's flags, and more.
#include "pipeline/evaluate.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "artifact/record.h"
#include "base/error.h"
#include "base/figures.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "evaluate/task.h"
#include "hub/sources.h"

namespace lquant::cli {
namespace fs = std::filesystem;

namespace {

struct Options {
  pipeline::EvaluateRun run;
  std::string chat_arguments = "{}";
  bool chat = false, unsafe_code = false, record = false, json = false, trust_remote_code = false;
  double temperature = 0, top_p = 1;
  int top_k = 0;
};

std::string with_error(const evaluate::Mean& mean) {
  return plus_minus(mean.value, mean.error, 4);
}

std::string table_of(const pipeline::EvaluateResult& result) {
  const bool compared = !result.figures.empty() && result.figures[0].paired;
  Table table(std::vector<Align>(7, Align::left));
  std::vector<std::string> head{"task", "metric", "value ± stderr"};
  if (compared) head.insert(head.end(), {"teacher", "difference [95 %]", "gained/lost", "p"});
  table.add(head);
  for (const auto& f : result.figures) {
    std::vector<std::string> row{f.task, f.metric, with_error(f.model)};
    if (f.paired)
      row.insert(row.end(), {with_error(*f.teacher), fmt::format("{:+.4f} [{:+.4f}, {:+.4f}]", f.paired->difference, f.paired->low, f.paired->high),
                             fmt::format("{}/{}", f.paired->gained, f.paired->lost), fmt::format("{:.3g}", f.paired->p)});
    table.add(row);
  }
  return table.text();
}

/// The tasks' rows from their data sets, as links in a folder like --data-dir's.
fs::path data_of_hub(const std::vector<const evaluate::Task*>& tasks, const pipeline::EvaluateRun& run, const run::Context& context) {
  fs::path folder;
  for (const auto* task : tasks) {
    const auto& definition = task->definition;
    std::optional<std::string> config;
    if (definition.contains("dataset_name")) config = definition.at("dataset_name").get<std::string>();
    std::vector<std::string> splits{task->scored_split()};
    if (run.shots.value_or(0) > 0 && task->train) splits.push_back(*task->train);
    for (const auto& split : splits) {
      const auto file = hub::split(definition.at("dataset").get<std::string>(), config, split, context);
      folder = file.parent_path().parent_path().parent_path() / "tasks";  // beside what was fetched
      fs::create_directories(folder / task->name);
      const auto link = folder / task->name / (split + ".jsonl");
      fs::remove(link);
      fs::create_symlink(file, link);
    }
  }
  return folder;
}

/// Puts the figures into the model's lquant.json, from which the model card is made; those of the same tasks make way.
void record(const pipeline::EvaluateRun& run, const pipeline::EvaluateResult& result) {
  const auto figure = [](const evaluate::Mean& mean) {
    return nlohmann::json{{"value", mean.value}, {"error", or_null(mean.error)}};
  };
  auto tasks = nlohmann::json::object();
  for (const auto& f : result.figures) {
    auto& task = tasks[f.task];
    task["rows"] = result.report.at("n-samples").at(f.task).at("effective").get<std::int64_t>();
    task["examples"] = run.shots.value_or(0);
    task["metrics"][f.metric] = figure(f.model);
    if (f.teacher) task["original"][f.metric] = figure(*f.teacher);
  }
  artifact::add_tasks(run.model, tasks);
}

/// All that options alone can tell.
void check(Options& o, const CLI::App& command) {
  auto& r = o.run;
  if (o.unsafe_code)
    throw UsageError("--confirm-run-unsafe-code is refused: lquant never runs a model's answers as code, and no task here asks for it; leave it out");
  for (const auto& name : r.tasks) evaluate::find_task(name);
  refuse_repeated("--tasks", r.tasks);
  if (command.count("--apply-chat-template") > 0) r.chat = o.chat;
  r.chat_arguments = nlohmann::ordered_json::parse(o.chat_arguments, nullptr, /*allow_exceptions=*/false);
  if (!r.chat_arguments.is_object()) throw UsageError("--chat-template-args is no JSON object; write it like '{\"enable_thinking\": false}'");
  if (r.chat == false)
    refuse_idle(command, {"--chat-template-args", "--fewshot-as-multiturn"}, "with --no-apply-chat-template; leave out one or the other");
  check_model("--model", r.model);
  if (r.teacher) check_model("--compare", *r.teacher);
  if (!r.data.empty() && !fs::is_directory(r.data)) fail("cli", "{}: is no folder; give --data-dir one with TASK/SPLIT.jsonl", r.data.string());
  if (o.record && fs::exists(r.model)) check_record(r.model);
  check_folder_to_fill("--output-dir", r.output_dir);
  remark_accepted(command, "--trust-remote-code", "lquant never runs code from a model folder");
}

int run(Options& o, const CLI::App& command, run::Stop& stop) {
  remark_idle(command, {"--temp", "--top-p", "--top-k"}, "here: nothing is sampled");
  if (o.run.shots.value_or(0) == 0) remark_idle(command, {"--seed", "--fewshot-as-multiturn"}, "without --num-shots: there are no examples to draw");
  const auto events = events_on_stderr(/*quiet=*/o.json);
  const run::Context context(*events, stop);
  o.run.model = hub::model(std::filesystem::path(o.run.model), context).string();
  if (o.run.teacher) o.run.teacher = hub::model(std::filesystem::path(*o.run.teacher), context).string();
  if (o.run.data.empty()) {
    std::vector<const evaluate::Task*> tasks;
    for (const auto& name : o.run.tasks) tasks.push_back(&evaluate::find_task(name));
    try {
      o.run.data = data_of_hub(tasks, o.run, context);
    } catch (const Error& e) {
      throw Error(fmt::format("{}; or give the rows by --data-dir, a folder with TASK/SPLIT.jsonl", e.what()));
    }
  }
  if (o.record) check_record(o.run.model);
  const auto result = pipeline::evaluate_tasks(o.run, context);
  if (o.record) record(o.run, result);
  if (o.json) {
    print_json(result.report);
    return 0;
  }
  put(table_of(result));
  context.line(fmt::format("saved to {}", result.file.string()));
  return 0;
}

}  // namespace

void add_evaluate(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("evaluate", "Measure accuracy on multiple-choice tasks as lm-eval does, alone or against a teacher");
  auto o = std::make_shared<Options>();
  auto& r = o->run;
  command->add_option("--model,-m", r.model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--tasks", r.tasks, "Any of arc_challenge, arc_easy, boolq, hellaswag, openbookqa, piqa, social_iqa, winogrande")->required();
  command->add_option("--data-dir", r.data, "Folder with the rows, TASK/SPLIT.jsonl (default: they are fetched from the Hugging Face hub)");
  command->add_option("--compare,--teacher", r.teacher, "A model to compare with, question by question");
  command->add_option("--output-dir", r.output_dir, "Where the files of results go")->capture_default_str();
  command->add_option("--batch-size", r.batch_size, "512 times this many tokens go through the model at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--num-shots", r.shots, "Examples before each question (default: none)")->check(CLI::Range(0, 1000));
  command
      ->add_option("--max-tokens", r.max_tokens, "Longest prompt that the model reads (default: its config's); the beginning of a longer one is cut")
      ->check(CLI::Range(1, 1 << 30));
  command->add_option("--limit", r.limit, "Rows of each task (default: all)")->check(kPositive);
  command->add_option("--seed", r.seed, "Seed of the choice of examples")->capture_default_str()->check(kSeed);
  command->add_flag("--fewshot-as-multiturn", r.multiturn, "In a chat, examples are turns of their own instead of one user's message");
  command->add_flag("--apply-chat-template,!--no-apply-chat-template", o->chat,
                    "Ask in the form of a chat (default: if the model has a chat template)");
  command->add_option("--chat-template-args", o->chat_arguments, "JSON object of variables for the chat template")->capture_default_str();
  command->add_flag("--confirm-run-unsafe-code", o->unsafe_code, "Refused: no code of a model is ever run");
  command->add_flag("--fresh", r.fresh, "Start over instead of continuing an interrupted run");
  command->add_flag("--record", o->record, "Keep the figures in the model's lquant.json, for its card (see lquant upload)");
  command->add_flag("--json", o->json, "Print the results as JSON on stdout");
  command->add_option("--temp", o->temperature, "Accepted for mlx_lm's sake, as --top-p and --top-k are; nothing is sampled");
  command->add_option("--top-p", o->top_p, "See --temp");
  command->add_option("--top-k", o->top_k, "See --temp");
  command->add_flag("--trust-remote-code", o->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  when_chosen(command, chosen, [o, command] { check(*o, *command); }, [o, command](run::Stop& stop) { return run(*o, *command, stop); });
}

}  // namespace lquant::cli
