// First everything is read, prompted and encoded, so that a bad row is found before an hour of scoring; then the model's batches are
// scored one after the other, each a unit of the run folder; the teacher comes when the model has left the memory.
#include "pipeline/evaluate.h"

#include <mlx/mlx.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/words.h"
#include "evaluate/score.h"
#include "pipeline/evaluate_prompts.h"
#include "pipeline/evaluate_report.h"
#include "pipeline/output.h"
#include "pipeline/rows.h"
#include "run/run_folder.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

namespace {

/// The release whose task definitions, prompts and metrics src/evaluate reproduces.
constexpr const char* kLmEval = "0.4.13";
/// Tokens of a batch for each unit of --batch-size: the default of 8 makes products of 4,096 rows, long enough for their peak.
constexpr std::size_t kTokensPerRow = 512;
/// What mlx_lm's wrapper takes a model to read when nothing is said.
constexpr int kDefaultMaxTokens = 8192;
/// Longest name of a file on the usual file systems.
constexpr std::size_t kNameLimit = 255;
constexpr const char *kReportSuffix = ".json", *kRowsSuffix = ".rows.jsonl", *kRunSuffix = ".lquant-run";

std::string joined_name(const std::string& model, const EvaluateRun& run) {
  std::string name = fmt::format("eval_{}_{}", model, kLmEval);
  if (run.shots) name += fmt::format("_{:02d}", *run.shots);
  for (const auto& task : run.tasks) name += "_" + task;
  return name;
}

/// A model with all that is to be asked of it, in tokens.
struct Side {
  std::string prefix;  ///< of its units
  model::Model model;
  int max_tokens;
  std::vector<std::vector<evaluate::Encoded>> encoded;                    ///< of each task, each row
  std::vector<std::vector<std::pair<std::size_t, std::size_t>>> batches;  ///< of each task
};

int max_tokens(const EvaluateRun& run, const model::Model& model) {
  const int positions = model.spec().positions();
  if (run.max_tokens) {
    check_positions(model.spec(), *run.max_tokens, "--max-tokens");
    return *run.max_tokens;
  }
  if (positions > 0) return positions;
  const auto& config = model.checkpoint().config();
  for (const auto* at : {&config, config.contains("text_config") ? &config.at("text_config") : nullptr})
    if (at && at->contains("max_position_embeddings") && at->at("max_position_embeddings").is_number_integer())
      return static_cast<int>(std::clamp(at->at("max_position_embeddings").get<double>(), 1.0, 1e9));
  return kDefaultMaxTokens;
}

std::string digest(const std::vector<evaluate::Encoded>& rows) {
  Sha256 hash;
  for (const auto& row : rows)
    for (const auto& s : row.sequences) {
      const std::uint64_t sizes[2] = {s.tokens.size(), s.scored};
      hash.update(sizes, sizeof sizes).update(s.tokens.data(), s.tokens.size() * sizeof(std::int32_t));
    }
  return hash.hex();
}

evaluate::Chat chat_of(const text::Tokenizer& tokenizer, const EvaluateRun& run, bool chat) {
  if (!chat) return nullptr;
  return [&tokenizer, arguments = run.chat_arguments](const json& messages) {
    return tokenizer.apply_chat_template(messages, /*add_generation_prompt=*/true, nullptr, arguments);
  };
}

/// Reads the tasks for one model. `rows` gets what does not depend on it.
Side open_side(const std::string& folder, const std::string& prefix, const std::vector<const evaluate::Task*>& tasks, const EvaluateRun& run,
               std::optional<bool>& chat, std::vector<TaskRows>& rows, const run::Context& context) {
  const auto checkpoint = model::open_checkpoint(folder);
  Side side{prefix, model::Model::open(checkpoint), 0, {}, {}};
  side.max_tokens = max_tokens(run, side.model);
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  if (!chat) chat = tokenizer.has_chat_template();
  if (*chat && !tokenizer.has_chat_template())
    fail("pipeline", "{}: has no chat template; leave --apply-chat-template out or add a chat_template.jinja", folder);
  if (!*chat && prefix.empty() && (!run.chat_arguments.empty() || run.multiturn))
    context.warn(fmt::format("{}: has no chat template, so --chat-template-args and --fewshot-as-multiturn have no effect", folder));
  const auto render = chat_of(tokenizer, run, *chat);
  rows.clear();
  for (const auto* task : tasks) {
    auto read = read_task(*task, run, render);
    auto encoded = evaluate::encode(tokenizer, read.prompts, read.places, {side.max_tokens, *chat, side.model.spec().vocab});
    read.prompts.clear();
    const auto cut = std::count_if(encoded.begin(), encoded.end(), [](const auto& e) { return e.cut; });
    if (cut > 0)
      context.warn(fmt::format("{}: {} of {} prompts are longer than the {} tokens that the model reads and lose their beginnings; {}", task->name,
                               cut, encoded.size(), side.max_tokens,
                               run.shots.value_or(0) > 0 ? "use fewer --num-shots" : "give --max-tokens if it reads more"));
    if (run.limit && static_cast<std::size_t>(*run.limit) > read.total && prefix.empty())
      context.warn(fmt::format("{}: there are {} rows, fewer than --limit {}; all of them are scored", task->name, read.total, *run.limit));
    side.batches.push_back(evaluate::batches(encoded, kTokensPerRow * static_cast<std::size_t>(run.batch_size)));
    side.encoded.push_back(std::move(encoded));
    rows.push_back(std::move(read));
  }
  return side;
}

std::int64_t cost(const std::vector<evaluate::Encoded>& rows, std::size_t begin, std::size_t end) {
  std::int64_t tokens = 0;
  for (std::size_t i = begin; i < end; ++i) tokens += static_cast<std::int64_t>(evaluate::cost(rows[i]));
  return tokens;
}

/// A likelihood that is no number would be read as an answer that loses.
void check_numbers(const Side& side, const evaluate::Task& task, const std::vector<evaluate::Likelihoods>& likelihoods, mx::Dtype dtype) {
  for (const auto& of_row : likelihoods)
    for (const double value : of_row)
      if (std::isnan(value))
        fail("pipeline", "{}: its log-likelihoods of {} are not numbers; its weights are damaged or too large for {}: download or convert it again",
             side.model.checkpoint().folder().string(), task.name, dtype_name(dtype));
}

/// Rows scored and the seconds that took.
struct Rate {
  std::size_t rows = 0;
  double seconds = 0;
};

std::vector<std::vector<evaluate::Likelihoods>> score_side(const Side& side, const std::vector<TaskRows>& rows, run::RunFolder& folder,
                                                           run::Progress& progress, Rate& rate, const run::Context& context) {
  std::optional<evaluate::LoadedModel> loaded;
  std::optional<model::Head> head;
  std::vector<std::vector<evaluate::Likelihoods>> scores;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    const auto& encoded = side.encoded[t];
    std::vector<evaluate::Likelihoods> of_task;
    for (std::size_t b = 0; b < side.batches[t].size(); ++b) {
      context.check();
      const auto [begin, end] = side.batches[t][b];
      const auto unit = fmt::format("{}{}-{:06d}", side.prefix, rows[t].task->name, b);
      if (const auto found = folder.load(unit)) {
        for (const auto& row : found->meta.at("loglikelihoods")) {
          evaluate::Likelihoods likelihoods;
          for (const auto& value : row) likelihoods.push_back(value.is_null() ? -std::numeric_limits<double>::infinity() : value.get<double>());
          of_task.push_back(std::move(likelihoods));
        }
        progress.skip(cost(encoded, begin, end));
        continue;
      }
      if (!loaded) {
        loaded = evaluate::LoadedModel::load(side.model);
        head = model::head(loaded->spec, loaded->tensors, loaded->formats, loaded->dtype);
      }
      const auto start = std::chrono::steady_clock::now();
      const auto likelihoods = evaluate::score(*loaded, *head, std::span(encoded).subspan(begin, end - begin));
      check_numbers(side, *rows[t].task, likelihoods, loaded->dtype);
      rate.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      rate.rows += end - begin;
      folder.save(unit, {}, {{"loglikelihoods", likelihoods}});
      of_task.insert(of_task.end(), likelihoods.begin(), likelihoods.end());
      progress.advance(cost(encoded, begin, end), fmt::format("{} {}/{}", rows[t].task->name, of_task.size(), encoded.size()));
    }
    scores.push_back(std::move(of_task));
  }
  return scores;
}

void check_options(const EvaluateRun& run) {
  if (run.tasks.empty()) throw UsageError("--tasks names no task");
  if (run.data.empty())
    throw UsageError("--data-dir is missing; give a folder with the rows of each task as TASK/SPLIT.jsonl (arc_easy/test.jsonl, say)");
  if (!fs::is_directory(run.data)) fail("pipeline", "{}: is no folder; give --data-dir one with TASK/SPLIT.jsonl", run.data.string());
}

nlohmann::json identity_of(const EvaluateRun& run, const std::vector<Side>& sides, const std::vector<TaskRows>& rows) {
  nlohmann::json identity{{"command", "evaluate"}, {"batch_size", run.batch_size}, {"version", kLmEval}};
  for (const auto& side : sides) {
    identity[side.prefix + "model"] = side.model.checkpoint().fingerprint();
    // The tokens are all that a score depends on besides the model: rows, templates, examples, seed, limit and tokenizer are in them.
    for (std::size_t t = 0; t < rows.size(); ++t) identity[side.prefix + rows[t].task->name] = digest(side.encoded[t]);
  }
  return identity;
}

}  // namespace

std::string evaluate_file_name(const EvaluateRun& run) {
  auto model = run.model;
  std::replace(model.begin(), model.end(), '/', '_');
  auto name = joined_name(model, run);
  const auto fits = [](const std::string& n) {
    return n.size() + std::max(std::string(kRowsSuffix).size(), std::string(kRunSuffix).size() + 8) <= kNameLimit;
  };
  if (!fits(name)) {
    auto folder = fs::path(run.model).lexically_normal();
    if (!folder.has_filename()) folder = folder.parent_path();
    name = joined_name(folder.filename().string(), run);
  }
  if (!fits(name)) fail("pipeline", "{}: is too long a name for a file of results; give --model a shorter one or fewer --tasks", name);
  return name;
}

EvaluateResult evaluate_tasks(const EvaluateRun& run, const run::Context& context) {
  std::vector<const evaluate::Task*> tasks;
  for (const auto& name : run.tasks) {
    const auto* task = &evaluate::find_task(name);
    if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) tasks.push_back(task);
  }
  check_options(run);
  EvaluateResult result;
  result.file = run.output_dir / evaluate_file_name(run);
  if (fs::exists(fs::symlink_status(result.file)))
    fail("pipeline", "{}: exists already; choose another --output-dir or remove it", result.file.string());

  std::vector<TaskRows> rows;
  std::vector<Side> sides;
  std::optional<bool> chat = run.chat;
  sides.push_back(open_side(run.model, "", tasks, run, chat, rows, context));
  if (run.teacher) sides.push_back(open_side(*run.teacher, "teacher-", tasks, run, chat, rows, context));

  std::error_code ec;
  fs::create_directories(run.output_dir, ec);
  if (ec) fail("pipeline", "{}: cannot be made ({}); choose another --output-dir", run.output_dir.string(), ec.message());
  run::RunFolder folder(result.file, identity_of(run, sides, rows), run.fresh, context);

  const run::Stop::Heeding heeding(context.stop());
  std::int64_t total = 0;
  for (const auto& side : sides)
    for (const auto& encoded : side.encoded) total += cost(encoded, 0, encoded.size());
  run::Progress progress(context.events(), "scoring tokens", total);
  std::vector<TaskScores> scores;
  for (const auto& of : rows) scores.push_back({&of, {}, {}});
  Rate rate;
  for (const auto& side : sides) {
    auto of_side = score_side(side, rows, folder, progress, rate, context);
    for (std::size_t t = 0; t < rows.size(); ++t) (side.prefix.empty() ? scores[t].model : scores[t].teacher) = std::move(of_side[t]);
  }
  result.rows_per_second = rate.seconds > 0 ? static_cast<double>(rate.rows) / rate.seconds : 0;
  progress.finish(rate.rows > 0 ? fmt::format("{:.1f} rows/s", result.rows_per_second) : "");

  json config{{"model", utf8(run.model)}, {"model_fingerprint", sides[0].model.checkpoint().fingerprint()}};
  if (run.teacher) config["teacher"] = utf8(*run.teacher);
  config.update({{"lm_eval", kLmEval},
                 {"dtype", dtype_name(sides[0].model.compute_dtype())},
                 {"max_tokens", sides[0].max_tokens},
                 {"limit", run.limit ? json(*run.limit) : json()},
                 {"seed", run.seed},
                 {"apply_chat_template", *chat},
                 {"chat_template_args", run.chat_arguments},
                 {"fewshot_as_multiturn", run.multiturn},
                 {"batch_size", run.batch_size}});
  summarize(scores, run, config, result);
  write_file_atomically("pipeline", result.file.string() + kRowsSuffix, row_lines(scores));
  write_file_atomically("pipeline", result.file.string() + kReportSuffix, result.report.dump(1) + "\n");
  write_file_atomically("pipeline", result.file, result.report.at("results").dump(4));
  folder.remove();
  return result;
}

}  // namespace lquant::pipeline
