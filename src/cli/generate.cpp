// `lquant generate`: a text from a prompt, with the flags and the output of `mlx_lm.generate`.
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/command.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/terminal.h"
#include "hub/sources.h"
#include "model/generate.h"
#include "model/model.h"
#include "text/stream.h"
#include "text/tokenizer.h"

namespace lquant::cli {
namespace {

namespace mx = mlx::core;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string model, prompt = "hello", chat_template_config, verbose = "True";
  std::optional<std::string> system_prompt;
  std::vector<std::string> extra_eos_tokens;
  bool ignore_chat_template = false, trust_remote_code = false;
  std::optional<std::uint64_t> seed;
  model::SampleOptions sample;
};

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
}

std::string read_prompt(const Options& options) {
  if (options.prompt == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  auto prompt = options.prompt;  // shells pass "\n" as two characters; mlx_lm means a line break by them
  replace_all(prompt, "\\n", "\n");
  replace_all(prompt, "\\t", "\t");
  return prompt;
}

/// Null when none were given.
nlohmann::ordered_json template_variables(const Options& options) {
  if (options.chat_template_config.empty()) return nullptr;
  auto variables = nlohmann::ordered_json::parse(options.chat_template_config, nullptr, /*allow_exceptions=*/false);
  if (!variables.is_object()) fail("generate", "--chat-template-config must be a JSON object, such as '{{\"enable_thinking\": false}}'");
  return variables;
}

std::vector<int> encode_prompt(const text::Tokenizer& tokenizer, const Options& options) {
  const auto prompt = read_prompt(options);
  if (options.ignore_chat_template || !tokenizer.has_chat_template()) return tokenizer.encode(prompt);
  auto messages = nlohmann::ordered_json::array();
  if (options.system_prompt) messages.push_back({{"role", "system"}, {"content", *options.system_prompt}});
  messages.push_back({{"role", "user"}, {"content", prompt}});
  const auto text = tokenizer.apply_chat_template(messages, /*add_generation_prompt=*/true, nullptr, template_variables(options));
  return tokenizer.encode(text, /*add_special_tokens=*/false);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Prints pieces of text as they become known, and counts.
class Printer {
 public:
  Printer(const text::Tokenizer& tokenizer, std::vector<int> stop) : decoder_(tokenizer), stop_(std::move(stop)) {}
  bool operator()(int token) {
    if (count_++ == 0) {
      prompt_seconds_ = seconds_since(start_);
      start_ = Clock::now();
    }
    if (std::count(stop_.begin(), stop_.end(), token) == 0) show(decoder_.add(token));
    return true;
  }
  void finish(std::size_t prompt_tokens, bool verbose) {
    show(decoder_.finish());
    print("\n");
    if (!verbose) return;
    const double seconds = std::max(seconds_since(start_), 1e-9);
    print("==========\n");
    if (!printed_) {
      print("No text generated for this prompt\n");
      return;
    }
    print("Prompt: {} tokens, {:.3f} tokens-per-sec\n", prompt_tokens, prompt_tokens / prompt_seconds_);
    print("Generation: {} tokens, {:.3f} tokens-per-sec\n", count_, count_ / seconds);
    print("Peak memory: {:.3f} GB\n", mx::get_peak_memory() / 1e9);
  }

 private:
  void show(const std::string& piece) {
    printed_ = printed_ || !piece.empty();
    put(piece);
    flush_output();  // readers follow the text as it grows
  }

  text::StreamDecoder decoder_;
  std::vector<int> stop_;
  Clock::time_point start_ = Clock::now();
  double prompt_seconds_ = 0;
  std::size_t count_ = 0;
  bool printed_ = false;
};

/// All that options alone can tell. What has no effect at temperature 0 is passed over, as mlx_lm does.
void check(const Options& o, const CLI::App& command) {
  const auto& s = o.sample;
  if (s.max_tokens == 0) throw UsageError("[generate] --max-tokens must not be 0 (-1: until the model stops)");
  const auto is_share = [](float x) { return x >= 0 && x <= 1; };
  if (!(s.temperature >= 0) || !std::isfinite(s.temperature) || !is_share(s.top_p) || !is_share(s.min_p) || s.top_k < 0)
    throw UsageError("sampling needs --temp >= 0, --top-p and --min-p between 0 and 1, and --top-k >= 0");
  if (o.ignore_chat_template)
    refuse_idle(command, {"--system-prompt", "--chat-template-config"}, "with --ignore-chat-template; leave out one or the other");
  template_variables(o);
  check_model("--model", o.model);
  remark_accepted(command, "--trust-remote-code", "lquant never runs code from a model folder");
}

int run(Options options, const CLI::App& command, run::Stop& stop) {
  if (options.sample.max_tokens < 0) options.sample.max_tokens = std::numeric_limits<int>::max();
  options.sample.seed = options.seed ? *options.seed : std::random_device{}();

  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  const auto checkpoint = model::open_checkpoint(hub::model(std::filesystem::path(options.model), context));
  const auto tokenizer = text::Tokenizer::open(checkpoint.files());
  if (!tokenizer.has_chat_template())
    remark_idle(command, {"--system-prompt", "--chat-template-config"}, "on this model, which has no chat template");
  const auto prompt = encode_prompt(tokenizer, options);
  if (prompt.empty()) fail("generate", "the prompt holds no token; give --prompt one character at least");
  const auto model = model::Model::open(checkpoint);
  tokenizer.check_ids(prompt, model.spec().vocab, [] { return std::string("the prompt"); });
  options.sample.stop = tokenizer.eos_ids();
  for (const auto& token : options.extra_eos_tokens) {
    const auto id = tokenizer.token_id(token);
    if (!id) fail("generate", "--extra-eos-token {}: no single token of this model", token);
    options.sample.stop.push_back(*id);
  }

  const auto dtype = model.compute_dtype();
  auto tensors = model.load_all(dtype);
  auto formats = model.formats();
  model::densify(tensors, formats, dtype);

  std::string verbose = options.verbose;
  std::transform(verbose.begin(), verbose.end(), verbose.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool talk = verbose != "false" && verbose != "f";
  if (talk) print("==========\n");
  Printer printer(tokenizer, options.sample.stop);
  model::sample(model.spec(), tensors, formats, dtype, {prompt}, options.sample, [&](int, int token) { return printer(token); });
  printer.finish(prompt.size(), talk);
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("generate", "Continue a prompt, as mlx_lm.generate does");
  auto options = std::make_shared<Options>();
  auto& sample = options->sample;
  sample.max_tokens = 100;
  sample.top_p = 1;
  command->add_option("--model", options->model, "Model: a folder, a .gguf file, or org/name on the Hugging Face hub")->required();
  command->add_option("--prompt,-p", options->prompt, "Message to be processed by the model ('-' reads from stdin)")->capture_default_str();
  command->add_option("--system-prompt", options->system_prompt, "System prompt for the chat template");
  command
      ->add_option("--max-tokens,-m", sample.max_tokens,
                   "Most tokens to generate (-1: until the model stops); -m is this here, as in mlx_lm, and elsewhere the model")
      ->capture_default_str();
  command->add_option("--temp", sample.temperature, "Sampling temperature; 0 takes the likeliest token")->capture_default_str();
  command->add_option("--top-p", sample.top_p, "Keep the likeliest tokens that hold this share of the probability")->capture_default_str();
  command->add_option("--min-p", sample.min_p, "Keep tokens with this share of the likeliest one's probability")->capture_default_str();
  command->add_option("--top-k", sample.top_k, "Keep this many of the likeliest tokens (0: all)")->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of the draws (default: a new one each time)")->check(kSeed);
  command->add_option("--extra-eos-token", options->extra_eos_tokens, "Further tokens that stop generation");
  command->add_flag("--ignore-chat-template", options->ignore_chat_template, "Use the raw prompt without the tokenizer's chat template");
  command->add_option("--chat-template-config", options->chat_template_config, "JSON object of further variables for the chat template");
  command->add_option("--prefill-step-size", sample.prefill_step, "Prompt tokens to process at a time; smaller values need less memory")
      ->check(kPositive)
      ->capture_default_str();
  command->add_flag("--trust-remote-code", options->trust_remote_code, "Accepted for mlx_lm's sake; no remote code is ever run");
  command->add_option("--verbose", options->verbose, "'False' or 'F' prints the text alone")->capture_default_str();
  when_chosen(
      command, chosen, [options, command] { check(*options, *command); },
      [options, command](run::Stop& stop) { return run(*options, *command, stop); });
}

}  // namespace lquant::cli
