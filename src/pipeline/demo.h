#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/figures.h"
#include "run/context.h"
#include "evaluate/quality.h"

namespace lquant::pipeline {

struct DemoRow {
  std::string name;
  double bits_per_weight = 0;
  std::int64_t bytes = 0;
  evaluate::Quality quality;
  double seconds = 0;
};

struct DemoOptions {
  std::filesystem::path model, output = "lquant-demo";
  int bits = 3;
};

/// Plain rounding beside DWQ on a small model, on data sampled from that model, measured on other texts sampled from it.
/// Leaves output/plain and output/dwq, replacing those of an earlier demo. Returns the table's rows.
std::vector<DemoRow> demo(const DemoOptions& options, const run::Context& context);

}  // namespace lquant::pipeline
