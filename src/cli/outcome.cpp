// Whoever runs lquant for the first time has a folder now and wonders what to do with it.
#include "cli/outcome.h"

#include <fmt/format.h>

#include "artifact/record.h"
#include "base/figures.h"
#include "base/words.h"

namespace lquant::cli {
namespace {

/// A path or name as a word of a shell that no command takes for an option.
std::string word(const std::string& path) { return shell_quoted(path.starts_with('-') ? "./" + path : path); }

/// Size and bits are those of what was quantized; what stands beside it is told apart.
std::string kept_words(const nlohmann::json& record) {
  std::string words;
  if (const auto kept = record.find("kept"); kept != record.end() && kept->is_object())
    for (const auto& [what, bytes] : kept->items()) words += fmt::format("{}{}, {}", words.empty() ? "; beside it, as they are: " : "; ", what, format_bytes(bytes.get<double>()));
  return words;
}

}  // namespace

std::string kl_words(double kl, const std::string& before, std::optional<double> before_kl) {
  auto words = fmt::format("KL to the original on held-out rows: {:.4f} nats/token", kl);
  if (before_kl) words += fmt::format("{}{} {:.4f}", kl < *before_kl ? ", " : ", no lower than ", before, *before_kl);
  return words;
}

void tell_outcome(const Outcome& outcome, const run::Context& context) {
  const auto record = artifact::record_of(FileSet::of_folder(outcome.output));
  const auto folder = word(outcome.output.string());
  context.line(fmt::format("saved to {}: {}, {:.3f} bits per weight{}", outcome.output.string(), format_bytes(record.value("bytes", 0.0)),
                           record.value("bits_per_weight", 0.0), kept_words(record)));
  if (!outcome.quality.empty()) context.line(outcome.quality);
  context.line(fmt::format("try it:                 lquant generate --model {} --prompt 'Once upon a time'", folder));
  context.line(fmt::format("measure it on a text:   lquant perplexity --model {} --teacher {} --data-path text.txt", folder, word(outcome.original)));
  if (!outcome.is_published) context.line(fmt::format("publish it on the hub:  lquant upload --path {} --upload-repo user/name", folder));
}

void tell_plan(const std::filesystem::path& plan, const std::string& original, const run::Context& context) {
  context.line(fmt::format("saved to {}", plan.string()));
  context.line(fmt::format("quantize by it:  lquant gptq --model {} --plan {}", word(original), word(plan.string())));
}

}  // namespace lquant::cli
