#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "cli/options.h"
#include "run/context.h"

// One file a command: add_NAME declares its options on `app` and, when the command is chosen, sets `run`, which does the
// work, ends early when `stop` is requested, and returns the exit code. `main` owns the one catch.
namespace lquant::cli {

using Run = std::function<int(run::Stop&)>;

/// What happens when the command is chosen: empty values are refused, `check` tells what options alone can tell (it throws UsageError or Error), and
/// `work` becomes what is run.
template <class Check, class Work>
void when_chosen(CLI::App* command, Run& chosen, Check check, Work work) {
  command->callback([=, &chosen] {
    refuse_empty(*command);
    check();
    chosen = work;
  });
}

void add_auto(CLI::App& app, Run& run);
void add_awq(CLI::App& app, Run& run);
void add_convert(CLI::App& app, Run& run);
void add_demo(CLI::App& app, Run& run);
void add_dynamic_quant(CLI::App& app, Run& run);
void add_dwq(CLI::App& app, Run& run);
void add_evaluate(CLI::App& app, Run& run);
void add_families(CLI::App& app, Run& run);
void add_gptq(CLI::App& app, Run& run);
void add_generate(CLI::App& app, Run& run);
void add_logits(CLI::App& app, Run& run);
void add_perplexity(CLI::App& app, Run& run);
void add_report(CLI::App& app, Run& run);
void add_upload(CLI::App& app, Run& run);

}  // namespace lquant::cli
