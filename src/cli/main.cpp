#include <fmt/format.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "cli/command.h"
#include "cli/signals.h"
#include "cli/waiting.h"
#include "lquant/version.h"

namespace {

/// Says it and passes the exit code on. Where stderr cannot be written (a full disk) the code still tells; fmt::print would throw.
int complain(int code, const char* sentence) noexcept {
  std::fputs("lquant: ", stderr);
  std::fputs(sentence, stderr);
  std::fputs("\n", stderr);
  return code;
}

/// CLI11 says what is wrong; here it becomes one sentence that also says where help is.
int refuse(const CLI::App& app, const std::string& command, const std::string& complaint) {
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  const bool known = std::any_of(commands.begin(), commands.end(), [&](const auto* c) { return c->get_name() == command; });
  if (known) return complain(2, fmt::format("{}; see lquant {} --help", complaint, command).c_str());
  std::string names;
  for (const auto* c : commands) names += (names.empty() ? "" : ", ") + c->get_name();
  const auto what = command.empty() ? "a command is needed" : fmt::format("there is no command {}", command);
  return complain(2, fmt::format("{}; choose one of {}", what, names).c_str());
}

/// Picks the command and runs it.
int front_door(int argc, char** argv) {
  using namespace lquant;
  CLI::App app{"lquant learns low-bit weights for language models and writes them in MLX's formats"};
  app.set_version_flag("--version", LQUANT_VERSION);
  app.require_subcommand(1);
  cli::Run run;
  cli::add_dwq(app, run);
  cli::add_gptq(app, run);
  cli::add_awq(app, run);
  cli::add_auto(app, run);
  cli::add_dynamic_quant(app, run);
  cli::add_convert(app, run);
  cli::add_perplexity(app, run);
  cli::add_report(app, run);
  cli::add_evaluate(app, run);
  cli::add_generate(app, run);
  cli::add_logits(app, run);
  cli::add_upload(app, run);
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
  static run::Stop stop;  // the thread that takes signals outlives this function
  cli::take_signals(stop);
  return run(stop);
}

/// Block after block allocates and frees arrays of the same sizes: given back to the system each time, their pages would have to be cleared anew,
/// a twentieth of a GPTQ run. Kept are at most 256 MB; arrays from 32 MB on are mapped, and go back at once.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
#endif
}

}  // namespace

// Every failure becomes one sentence and an exit code here and nowhere else.
int main(int argc, char** argv) {
  lquant::cli::wait_briefly(argv);
  keep_freed_memory();
  try {
    return front_door(argc, argv);
  } catch (const lquant::UsageError& e) {
    return complain(2, e.what());
  } catch (const lquant::Interrupted& e) {
    return complain(130, e.what());
  } catch (const std::bad_alloc&) {
    return complain(1, "out of memory; use a smaller --batch-size or --max-seq-length");
  } catch (const std::exception& e) {
    return complain(1, e.what());
  }
}
