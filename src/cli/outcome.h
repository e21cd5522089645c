#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "run/context.h"

namespace lquant::cli {

/// What a command that makes a model folder tells of it when it is done.
struct Outcome {
  std::filesystem::path output{};
  std::string original{};     ///< --model as it was given: a folder, a file, or a name on the hub
  std::string quality{};      ///< what was measured, in words (kl_words); empty: nothing was
  bool is_published = false;  ///< it goes to the hub anyway (--upload-repo)
};

/// "KL to the original on held-out rows: 0.0812 nats/token, BEFORE 0.1863"; a KL that is not below `before_kl` is said to be no lower.
std::string kl_words(double kl, const std::string& before = "", std::optional<double> before_kl = std::nullopt);

/// The last lines of a run, on stderr: where the folder is, how large, how good, and the commands that one may want next, quoted for the shell. Size and
/// bits per weight are those of the folder's record. Throws Error when that cannot be read.
void tell_outcome(const Outcome& outcome, const run::Context& context);

/// The same of a plan's file.
void tell_plan(const std::filesystem::path& plan, const std::string& original, const run::Context& context);

}  // namespace lquant::cli
