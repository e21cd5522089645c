// `lquant upload`: mlx_lm.upload's flags, and more.
#include "hub/library.h"
#include "hub/upload.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/print.h"
#include "cli/table.h"
#include "cli/terminal.h"

namespace lquant::cli {
namespace {

struct Options {
  hub::Upload upload;
  bool dry_run = false;
};

int run(const Options& o, run::Stop& stop) {
  const auto events = events_on_stderr();
  const run::Context context(*events, stop);
  if (!o.dry_run) hub::need_library();
  const auto plan = hub::plan_upload(o.upload);
  if (o.dry_run) {
    print("{}\n", plan.card);
    Table table({Align::left, Align::right});
    std::uint64_t total = 0;
    for (const auto& [name, bytes] : plan.files) {
      table.add({name, format_bytes(static_cast<double>(bytes))});
      total += bytes;
    }
    put(table.text());
    context.line(fmt::format("{} in {} files would go to {}; leave --dry-run out to send them", format_bytes(static_cast<double>(total)),
                         plan.files.size(), o.upload.repo));
    return 0;
  }
  context.line(fmt::format("the model is at {}", hub::send(o.upload, plan, context)));
  return 0;
}

}  // namespace

void add_upload(CLI::App& app, Run& chosen) {
  auto* command = app.add_subcommand("upload", "Publish a model folder on the Hugging Face hub");
  auto o = std::make_shared<Options>();
  auto& u = o->upload;
  command->add_option("--path", u.folder, "The model folder")->capture_default_str();
  command->add_option("--upload-repo", u.repo, "The repository, user/name; it is made when it is not there")->required();
  command->add_flag("--private", u.is_private, "A new repository is private");
  command->add_option("--revision", u.revision, "Branch to commit to; it is made when it is not there (default: main)");
  command->add_option("--commit-message", u.message, "Message of the commits")->capture_default_str();
  command->add_flag("--dry-run", o->dry_run, "Print the model card and the list of files, and send nothing");
  when_chosen(command, chosen, [o] { hub::check_repository(o->upload.repo); }, [o](run::Stop& stop) { return run(*o, stop); });
}

}  // namespace lquant::cli
