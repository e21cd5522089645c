// `lquant demo`: what the program is for, on the small model that comes with it, in a minute or two.
#include "pipeline/demo.h"

#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "cli/command.h"
#include "cli/embedded.h"
#include "cli/paths.h"
#include "cli/print.h"
#include "cli/table.h"
#include "cli/terminal.h"

namespace lquant::cli {
namespace {

void check(const pipeline::DemoOptions& o) {
  check_bits("--bits", o.bits);
  if (o.bits == 8) throw UsageError("--bits 8 leaves DWQ nothing to train, and so nothing to compare; give 2 to 6");
  check_folder_to_fill("--output", o.output);
  if (!o.model.empty()) check_present("--model", o.model);
}

std::string table_of(const std::vector<pipeline::DemoRow>& rows) {
  Table table({Align::left, Align::right, Align::right, Align::right, Align::right, Align::right});
  table.add({"", "bits/weight", "size", "KL to the original", "perplexity", "time"});
  for (const auto& row : rows) {
    const bool made = row.seconds > 0;
    table.add({row.name, fmt::format("{:.3f}", row.bits_per_weight), format_bytes(static_cast<double>(row.bytes)),
               made ? plus_minus(row.quality.kl, row.quality.kl_se, 4) : "0", fmt::format("{:.2f}", row.quality.perplexity()),
               made ? format_duration(row.seconds) : ""});
  }
  return table.text();
}

int run(pipeline::DemoOptions options, run::Stop& stop) {
  if (options.model.empty()) options.model = embedded_model();
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  const auto rows = pipeline::demo(options, context);
  put("\n" + table_of(rows));
  if (rows.size() == 3)
    print(
        "\nDWQ leaves {:.0f} % of plain rounding's KL at the same size. Try it:\n  python -m mlx_lm generate --model {} --prompt \"The river\"\n",
        100 * rows[2].quality.kl / rows[1].quality.kl, (options.output / "dwq").string());
  return 0;
}

}  // namespace

void add_demo(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("demo", "Quantize the embedded small model plainly and by DWQ, and compare");
  auto options = std::make_shared<pipeline::DemoOptions>();
  command->add_option("--model,-m", options->model, "Another model folder than the embedded one");
  command->add_option("--output", options->output, "Folder for the two results")->capture_default_str();
  command->add_option("--bits", options->bits, "Bits per weight")->capture_default_str();
  when_chosen(command, chosen, [options] { check(*options); }, [options](run::Stop& stop) { return run(*options, stop); });
}

}  // namespace lquant::cli
