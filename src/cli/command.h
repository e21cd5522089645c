#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "run/context.h"

// One file a command: add_NAME declares its options on `app` and, when the command is chosen, sets `run`, which does the
// work, ends early when `stop` is requested, and returns the exit code. `main` owns the one catch.
namespace lquant::cli {

using Run = std::function<int(run::Stop&)>;

/// CLI::PositiveNumber, whose complaint is some 300 digits long, in words.
inline const CLI::Validator kPositive(
    [](std::string& text) {
      double number = 0;
      return CLI::detail::lexical_cast(text, number) && number > 0 ? std::string() : text + " is not above 0";
    },
    "POSITIVE");

void add_auto(CLI::App& app, Run& run);
void add_awq(CLI::App& app, Run& run);
void add_convert(CLI::App& app, Run& run);
void add_demo(CLI::App& app, Run& run);
void add_dynamic_quant(CLI::App& app, Run& run);
void add_dwq(CLI::App& app, Run& run);
void add_evaluate(CLI::App& app, Run& run);
void add_gptq(CLI::App& app, Run& run);
void add_generate(CLI::App& app, Run& run);
void add_logits(CLI::App& app, Run& run);
void add_perplexity(CLI::App& app, Run& run);
void add_report(CLI::App& app, Run& run);
void add_upload(CLI::App& app, Run& run);

}  // namespace lquant::cli
