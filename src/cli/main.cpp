#include <fmt/format.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/shown.h"
#include "cli/command.h"
#include "cli/print.h"
#include "cli/signals.h"
#include "cli/threads.h"
#include "cli/usage.h"
#include "lquant/version.h"
#include "pipeline/memory.h"

namespace {

// The longest path that Linux takes.
constexpr std::size_t kLongestPath = 4096;

/// Says it and passes the exit code on. Where stderr cannot be written (a full disk) the code still tells; fmt::print would throw.
int complain(int code, const char* sentence) noexcept {
  // A library's thread that meets the same fault (MLX's of a shared run) would print its own words behind the sentence.
  std::cerr.setstate(std::ios::failbit);
  std::fputs("lquant: ", stderr);
  std::fputs(sentence, stderr);
  std::fputs("\n", stderr);
  return code;
}

/// Picks the command and runs it.
int front_door(int argc, char** argv) {
  using namespace lquant;
  CLI::App app{"lquant learns low-bit weights for language models and writes them in MLX's formats"};
  app.set_version_flag("--version", LQUANT_VERSION);
  app.name("lquant");
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
  cli::add_families(app, run);
  cli::add_upload(app, run);
  cli::add_demo(app, run);

  const auto arguments = cli::arguments_of(argv[0], {argv + 1, argv + argc});
  if (arguments.empty()) {  // as git does; on stderr, for it is no result
    std::fputs(cli::overview(app).c_str(), stderr);
    return 2;
  }
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));  // CLI11 takes them last first
  } catch (const CLI::CallForVersion&) {
    cli::print("{}\n", LQUANT_VERSION);
    return 0;
  } catch (const CLI::Success&) {  // --help
    if (app.get_subcommands().empty() && !arguments.front().starts_with('-')) return complain(2, cli::complaint(app, arguments, "").c_str());
    cli::put(app.get_subcommands().empty() ? cli::overview(app) : app.help());
    return 0;
  } catch (const CLI::ParseError& e) {
    return complain(2, cli::complaint(app, arguments, e.what()).c_str());
  }
  pipeline::prepare_device();
  static run::Stop stop;  // the thread that takes signals outlives this function
  cli::take_signals(stop);
  return run(stop);
}

/// The sentence for what nobody expected. The detail is a library's, for whoever mends lquant.
std::string own_fault(int argc, char** argv, const char* detail) {
  const auto command = argc > 1 ? lquant::shown(argv[1], 40) : std::string();
  return fmt::format("[cli] lquant {} has met a fault of its own, not of yours; please report it with the command and this detail: {}", command,
                     lquant::shown(detail, 300));
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
  lquant::cli::settle_threads(argv);
  lquant::cli::prepare_streams();
  keep_freed_memory();
  try {
    const int code = front_door(argc, argv);
    lquant::cli::close_output();
    return code;
  } catch (const lquant::UsageError& e) {
    return complain(2, e.what());
  } catch (const lquant::Interrupted& e) {
    return complain(130, e.what());
  } catch (const std::bad_alloc&) {
    return complain(1, "out of memory; use a smaller --batch-size or --max-seq-length");
  } catch (const lquant::Error& e) {
    return complain(1, e.what());
  } catch (const std::filesystem::filesystem_error& e) {
    return complain(1, fmt::format("[cli] {}: cannot be used ({}); check its permissions and the disk",
                                   lquant::shown(e.path1().string(), kLongestPath), e.code().message())
                           .c_str());
  } catch (const std::exception& e) {
    return complain(1, own_fault(argc, argv, e.what()).c_str());
  }
}
