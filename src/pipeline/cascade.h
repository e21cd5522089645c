#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "pipeline/awq.h"

namespace lquant::pipeline {

/// AWQ and a method after it, which starts from AWQ's scales ("gptq", whose codes replace AWQ's) or from its result ("dwq").
struct Cascade {
  AwqRun awq;  ///< its output is the whole's
  std::string then = "gptq";
  std::optional<int> then_samples;  ///< rows of the second method; default: AWQ's for gptq, 1,024 for dwq
};

/// Runs both; returns the second's figures. AWQ's result lies in "OUTPUT.awq" until the second has finished, and is used again when the same command
/// continues. Throws as awq, gptq and dwq do, and Error when that folder is of another run.
nlohmann::json cascade(const Cascade& options, const run::Context& context);

}  // namespace lquant::pipeline
