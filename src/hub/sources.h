#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/figures.h"
#include "run/context.h"

namespace lquant::hub {

/// What `--model` names, on this machine: a path that is there stays as it is; "org/name[@revision]" and "org/name/file.gguf" are fetched into the
/// shared cache of the Hugging Face hub (only the files that lquant reads; what is there is not fetched again). Anything else is returned
/// unchanged, for whoever opens it to complain about. Throws Error when the hub does not give the model.
std::filesystem::path model(const std::filesystem::path& given, const run::Context& context);
/// The same for an option that may be absent.
std::optional<std::filesystem::path> model(const std::optional<std::filesystem::path>& given, const run::Context& context);

/// What `--data-path` names, as a file that calibration reads: "self", and files and folders that are there, stay as they are; a .parquet file is
/// written as JSON lines beside the cache; of "org/name[:configuration[/split]][@revision]" `rows` rows (1,024 when it is not
/// positive) drawn with `seed` are fetched. Throws Error when that fails.
std::filesystem::path rows(const std::filesystem::path& given, int rows, std::uint64_t seed, const run::Context& context);
std::vector<std::string> rows(std::vector<std::string> given, int count, std::uint64_t seed, const run::Context& context);

/// All rows of a split of a data set as a .jsonl file. Throws Error when the hub does not give them.
std::filesystem::path split(const std::string& repo, const std::optional<std::string>& config, const std::string& split, const run::Context& context);

}  // namespace lquant::hub
