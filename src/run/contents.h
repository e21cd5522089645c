#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

namespace lquant::run {

/// What lies in a run folder beside its units (run_folder.h).
inline constexpr const char* kJournal = "journal.json";
inline constexpr const char* kSteps = "steps";

/// The identity in a run folder's journal; nullopt when there is none, or none that is as it was written.
std::optional<nlohmann::json> read_journal(const std::filesystem::path& folder);
/// Throws Error when the disk refuses.
void write_journal(const std::filesystem::path& folder, const nlohmann::json& identity);

/// SHA-256 by path of every file below `folder`. Throws Error when one cannot be read.
nlohmann::json digests(const std::filesystem::path& folder);

/// The first entry that no run makes; nullopt when all are a run's. `trusted`: the folder has a sound journal. Without one a tensor file is a
/// run's only when it is sealed.
std::optional<std::filesystem::path> find_foreign(const std::filesystem::path& folder, bool trusted);

/// Removes all of a run's own, the journal first: from then on the rest is nobody's. The lock stays.
void remove_contents(const std::filesystem::path& folder);

}  // namespace lquant::run
