#include "run/contents.h"

#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "checkpoint/sealed.h"

namespace lquant::run {
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

std::string seal_of(const json& identity) { return sha256(identity.dump()); }

bool is_a_runs(const fs::directory_entry& entry, bool trusted) {
  const auto name = entry.path().filename().string();
  std::error_code ec;
  if (entry.symlink_status(ec).type() == fs::file_type::directory) return name == kSteps;
  if (!entry.is_regular_file(ec) || entry.is_symlink(ec)) return false;
  if (name.ends_with(".safetensors")) return trusted || checkpoint::is_intact(entry.path());
  return name == "lock" || name == kJournal || name.ends_with(".partial");
}

}  // namespace

std::optional<json> read_journal(const fs::path& folder) {
  if (!fs::is_regular_file(fs::symlink_status(folder / kJournal))) return std::nullopt;
  // A journal that is no JSON is as good as none; an Error here would only ask for what start_over does.
  try {
    const auto journal = parse_json(read_file("run", folder / kJournal));
    const bool sealed = journal.is_object() && journal.contains("identity") && journal.contains("sha256") && journal.at("identity").is_object() &&
                        journal.at("sha256") == seal_of(journal.at("identity"));
    return sealed ? std::optional(journal.at("identity")) : std::nullopt;
  } catch (const JsonFault&) {
    return std::nullopt;
  }
}

void write_journal(const fs::path& folder, const json& identity) {
  write_file_atomically("run", folder / kJournal, json{{"identity", identity}, {"sha256", seal_of(identity)}}.dump(1) + "\n");
}

json digests(const fs::path& folder) {
  json found = json::object();
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) found[entry.path().lexically_relative(folder).string()] = sha256_file(entry.path());
  return found;
}

std::optional<fs::path> find_foreign(const fs::path& folder, bool trusted) {
  for (const auto& entry : fs::directory_iterator(folder))
    if (!is_a_runs(entry, trusted)) return entry.path();
  return std::nullopt;
}

void remove_contents(const fs::path& folder) {
  std::error_code ec;
  fs::remove(folder / kJournal, ec);
  sync_path("run", folder);
  std::vector<fs::path> ours;
  for (const auto& entry : fs::directory_iterator(folder, ec))
    if (is_a_runs(entry, true) && entry.path().filename() != "lock") ours.push_back(entry.path());
  for (const auto& path : ours) fs::remove_all(path, ec);
  if (ec) fail("run", "{}: cannot be emptied ({}); remove it by hand or pick another place for the output", folder.string(), ec.message());
  sync_path("run", folder);
}

}  // namespace lquant::run
