#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "cli/command.h"
#include "lquant/version.h"

namespace {

/// CLI11 says what is wrong; here it becomes one sentence that also says where help is.
int refuse(const CLI::App& app, const std::string& command, const std::string& complaint) {
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  const bool known = std::any_of(commands.begin(), commands.end(), [&](const auto* c) { return c->get_name() == command; });
  if (known) {
    fmt::print(stderr, "lquant: {}; see lquant {} --help\n", complaint, command);
    return 2;
  }
  std::string names;
  for (const auto* c : commands) names += (names.empty() ? "" : ", ") + c->get_name();
  fmt::print(stderr, "lquant: {}; choose one of {}\n", command.empty() ? "a command is needed" : fmt::format("there is no command {}", command),
             names);
  return 2;
}

}  // namespace

// The front door: picks the command, runs it, and turns every failure into one sentence and an exit code.
int main(int argc, char** argv) {
  using namespace lquant;
  CLI::App app{"lquant learns low-bit weights for language models and writes them in MLX's formats"};
  app.set_version_flag("--version", LQUANT_VERSION);
  app.require_subcommand(1);
  cli::Run run;
  cli::add_dwq(app, run);
  cli::add_gptq(app, run);
  cli::add_convert(app, run);
  cli::add_perplexity(app, run);
  cli::add_generate(app, run);
  cli::add_logits(app, run);
  cli::add_demo(app, run);

  // Called through a link named lquant.dwq, the program is `lquant dwq`.
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::string name = std::filesystem::path(argv[0]).filename().string();
  if (const auto dot = name.find('.'); dot != std::string::npos && name.compare(0, dot, "lquant") == 0)
    arguments.insert(arguments.begin(), name.substr(dot + 1));
  const std::string command = arguments.empty() ? "" : arguments.front();
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first

  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    return e.get_exit_code() == 0 ? app.exit(e) : refuse(app, command, e.what());
  }
  try {
    return run();
  } catch (const UsageError& e) {
    fmt::print(stderr, "lquant: {}\n", e.what());
    return 2;
  } catch (const Interrupted& e) {
    fmt::print(stderr, "lquant: {}\n", e.what());
    return 130;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "lquant: out of memory; use a smaller --batch-size or --max-seq-length\n");
    return 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "lquant: {}\n", e.what());
    return 1;
  }
}
