#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "cli/command.h"
#include "lquant/version.h"

// The front door: picks the command, runs it, and turns every failure into one sentence and an exit code.
int main(int argc, char** argv) {
  using namespace lquant;
  CLI::App app{"lquant learns low-bit weights for language models and writes them in MLX's formats"};
  app.set_version_flag("--version", LQUANT_VERSION);
  app.require_subcommand(1);
  cli::Run run;
  cli::add_dwq(app, run);
  cli::add_convert(app, run);
  cli::add_perplexity(app, run);
  cli::add_generate(app, run);
  cli::add_logits(app, run);
  cli::add_demo(app, run);

  // Called through a link named lquant.dwq, the program is `lquant dwq`.
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::string name = std::filesystem::path(argv[0]).filename().string();
  if (const auto dot = name.find('.'); dot != std::string::npos && name.compare(0, dot, "lquant") == 0) arguments.insert(arguments.begin(), name.substr(dot + 1));
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first

  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
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
