#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "artifact/card.h"
#include "base/file_set.h"

namespace lquant::artifact {

/// The file in which an output folder says how it was made.
constexpr const char* kRecordFile = "lquant.json";

/// The record among a model's files; an empty object when there is none, or what is there is no JSON object. For what a record may add and nothing depends
/// on: its values can be of any type. Throws Error when the file is there and cannot be read.
nlohmann::json record_of(const FileSet& files);

/// The card of a folder under these names: made of its record, or the README.md that somebody else wrote, as it is. Throws Error (tag artifact) when there
/// is neither, when the record is not one that lquant wrote, or the README's front matter is no valid YAML.
std::string card_of_folder(const std::filesystem::path& folder, const CardNames& names);

/// Adds an entry to the list "measured" of the folder's record; that of the same "text" makes way. The card beside it is made anew, if it is lquant's.
/// Throws Error when the folder has no record or cannot be written to.
void add_measured(const std::filesystem::path& folder, nlohmann::json entry);

/// Adds the figures of tasks, by their names, to the folder's record; those of the same tasks make way:
/// {"arc_easy": {"rows": 500, "examples": 0, "metrics": {"acc": {"value": 0.5, "error": 0.02}}, "original": {"acc": {…}}}}. As add_measured otherwise.
void add_tasks(const std::filesystem::path& folder, const nlohmann::json& tasks);

}  // namespace lquant::artifact
