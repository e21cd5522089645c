// `lquant demo`: what the program is for, on the small model that comes with it, in a minute or two.
#include "pipeline/demo.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/terminal.h"
#include "cli/embedded.h"

namespace lquant::cli {
namespace {

int run(pipeline::DemoOptions options, run::Stop& stop) {
  if (options.model.empty()) options.model = embedded_model();
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  const auto rows = pipeline::demo(options, context);
  fmt::print("\n{:<14} {:>11} {:>9} {:>20} {:>11} {:>8}\n", "", "bits/weight", "size", "KL to the original", "perplexity", "time");
  for (const auto& row : rows)
    fmt::print("{:<14} {:>11.3f} {:>9} {:>20} {:>11.2f} {:>8}\n", row.name, row.bits_per_weight, format_bytes(static_cast<double>(row.bytes)),
               row.seconds > 0 ? fmt::format("{:.4f} ± {:.4f}", row.quality.kl, row.quality.kl_se) : "0", row.quality.perplexity(),
               row.seconds > 0 ? format_duration(row.seconds) : "");
  if (rows.size() == 3)
    fmt::print(
        "\nDWQ leaves {:.0f} % of plain rounding's KL at the same size. Try it:\n  python -m mlx_lm generate --model {} --prompt \"The river\"\n",
        100 * rows[2].quality.kl / rows[1].quality.kl, (options.output / "dwq").string());
  return 0;
}

}  // namespace

void add_demo(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("demo", "Quantize the embedded small model plainly and by DWQ, and compare");
  auto options = std::make_shared<pipeline::DemoOptions>();
  command->add_option("--model", options->model, "Another model folder than the embedded one");
  command->add_option("--output", options->output, "Folder for the two results")->capture_default_str();
  command->add_option("--bits", options->bits, "Bits per weight")->capture_default_str();
  command->callback([options, &chosen] { chosen = [options](run::Stop& stop) { return run(*options, stop); }; });
}

}  // namespace lquant::cli
