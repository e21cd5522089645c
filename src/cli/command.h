#pragma once

#include <CLI/CLI.hpp>
#include <functional>

// One file a command: add_NAME declares its options on `app` and, when the command is chosen, sets `run`, which does the
// work and returns the exit code. `main` owns the one catch.
namespace lquant::cli {

using Run = std::function<int()>;

void add_convert(CLI::App& app, Run& run);
void add_demo(CLI::App& app, Run& run);
void add_dwq(CLI::App& app, Run& run);
void add_generate(CLI::App& app, Run& run);
void add_logits(CLI::App& app, Run& run);
void add_perplexity(CLI::App& app, Run& run);

}  // namespace lquant::cli
