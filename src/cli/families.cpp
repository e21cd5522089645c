// `lquant families`: the model types that are known, one a line.
#include "cli/command.h"
#include "cli/print.h"
#include "model/spec.h"

namespace lquant::cli {

void add_families(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("families", "List the model types that lquant knows (\"model_type\" of config.json), one a line");
  when_chosen(command, chosen, [] {}, [](run::Stop&) {
    for (const auto& type : model::known_model_types()) print("{}\n", type);
    return 0;
  });
}

}  // namespace lquant::cli
