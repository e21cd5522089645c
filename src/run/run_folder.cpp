// A run is described by its identity; its progress is a set of named units, each one sealed file written under another name, synced and
// renamed. The journal comes first and goes together with the rest: units without it are nobody's, and nobody's units are never used.
#include "run/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/shown.h"
#include "checkpoint/sealed.h"
#include "lquant/version.h"
#include "run/contents.h"

namespace lquant::run {
namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

constexpr const char* kSuffix = ".safetensors";
constexpr const char* kStepUnit = "step-";
// In a message; a run of other options and data differs in a dozen keys.
constexpr std::size_t kLongestDifferences = 400;

/// "bits (was 4, now 3), data" for the keys in which two identities differ.
std::string differences(const json& before, const json& now) {
  std::string text;
  const auto short_value = [](const json& v) { return v.is_object() || v.is_array() || v.dump().size() > 40 ? std::string() : v.dump(); };
  for (const auto& [key, value] : now.items()) {
    const json old = before.contains(key) ? before.at(key) : json();
    if (old == value) continue;
    if (!text.empty()) text += ", ";
    text += key;
    if (!short_value(old).empty() && !short_value(value).empty()) text += " (was " + short_value(old) + ", now " + short_value(value) + ")";
  }
  for (const auto& [key, value] : before.items())
    if (!now.contains(key)) text += (text.empty() ? "" : ", ") + key;
  return text;
}

std::string as_text(const json& value) { return value.dump(-1, ' ', true, json::error_handler_t::replace); }

fs::path removed_name(const fs::path& folder) { return folder.string() + ".removed"; }

}  // namespace

fs::path RunFolder::folder_of(const fs::path& output) {
  auto name = output.lexically_normal();
  if (!name.has_filename()) name = name.parent_path();
  return name.string() + ".lquant-run";
}

void RunFolder::clear_removed(const fs::path& output) {
  std::error_code ignored;
  fs::remove_all(removed_name(folder_of(output)), ignored);
}

RunFolder::RunFolder(const fs::path& output, json identity, bool fresh, const Context& context, bool active)
    : folder_(folder_of(output)), active_(active) {
  if (!active_) return;
  identity["lquant"] = LQUANT_VERSION;
  // Compared as written: a number read back from JSON is the number that was written.
  identity_ = json::parse(as_text(identity));
  std::error_code ec;
  const auto kind = fs::symlink_status(folder_, ec).type();
  if (kind != fs::file_type::not_found && kind != fs::file_type::directory)
    fail("run", "{}: is {} where the run's own folder belongs; move it away or pick another place for the output", folder_.string(),
         kind == fs::file_type::symlink ? "a link" : "no folder");
  fs::create_directories(folder_, ec);
  if (ec) fail("run", "{}: cannot be made ({}); pick another place for the output", folder_.string(), ec.message());
  if (!take_lock()) fail("run", "{}: another run is working there; wait for it or pick another place for the output", folder_.string());
  clear_removed(output);

  const auto before = fresh ? std::nullopt : read_journal(folder_);
  if (!before && holds_work() && !fresh)
    context.warn(fmt::format("{}: what an earlier run left there has no journal that can be trusted; starting over", folder_.string()));
  if (!before || !holds_work()) {
    start_over();
    return;
  }
  if (*before != identity_)
    fail("run", "{}: left by a run that differs in {}; repeat that command to continue it, or add --fresh to start over", folder_.string(),
         shown(differences(*before, identity_), kLongestDifferences));
  drop_damaged(context);
  resumed_ = holds_work();
  if (resumed_) context.line(fmt::format("continuing the run in {}", folder_.string()));
}

RunFolder::Lock::~Lock() {
  if (descriptor >= 0) ::close(descriptor);
}

RunFolder::~RunFolder() {
  if (active_ && !holds_work()) remove();
}

/// False when another process has it. A process that has just finished may have renamed the folder away under our hands: then the lock is one of
/// a folder that is gone, and a new one is made.
bool RunFolder::take_lock() {
  for (;;) {
    const auto path = folder_ / "lock";
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (descriptor < 0) {
      std::error_code ec;
      if (errno == ENOENT && fs::create_directories(folder_, ec)) continue;
      fail("run", "{}: cannot be made ({}); pick another place for the output", path.string(), std::error_code(errno, std::generic_category()).message());
    }
    if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      ::close(descriptor);
      return false;
    }
    struct stat held {
    }, named{};
    if (::fstat(descriptor, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
      lock_.descriptor = descriptor;
      return true;
    }
    ::close(descriptor);
    std::error_code ec;
    fs::create_directories(folder_, ec);
  }
}

/// Removes what is there, if all of it is a run's, and writes the journal of this run.
void RunFolder::start_over() {
  if (const auto foreign = find_foreign(folder_, read_journal(folder_).has_value()))
    fail("run", "{}: was not made by a run of lquant and would be removed with the folder; move it away or pick another place for the output",
         foreign->string());
  remove_contents(folder_);
  write_journal(folder_, identity_);
}

void RunFolder::drop_damaged(const Context& context) {
  const auto again = [&](const fs::path& file) {
    context.warn(fmt::format("{}: is not as it was written; what it held is computed again", file.string()));
  };
  std::vector<fs::path> entries;
  for (const auto& entry : fs::directory_iterator(folder_)) entries.push_back(entry.path());
  for (const auto& file : entries) {
    if (file.extension() == ".partial") {
      fs::remove(file);
    } else if (file.extension() == kSuffix && !checkpoint::is_intact(file)) {
      again(file);
      fs::remove(file);
    }
  }
  std::error_code ec;
  std::vector<fs::path> steps;
  for (const auto& entry : fs::directory_iterator(folder_ / kSteps, ec)) steps.push_back(entry.path());
  for (const auto& place : steps) {
    const auto name = place.filename().string();
    if (name.find('.') != std::string::npos) continue;  // not finished: NAME.new, with the run folder that makes it
    const auto unit = load(kStepUnit + name);
    if (unit && unit->meta.is_object() && unit->meta.value("files", json()) == digests(place)) continue;
    if (unit) again(place);
    fs::remove_all(place);
  }
}

bool RunFolder::holds_work() const {
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(folder_, ec))
    if (entry.path().extension() == kSuffix) return true;
  for (const auto& entry : fs::directory_iterator(folder_ / kSteps, ec))
    if (entry.is_directory(ec)) return true;
  return false;
}

fs::path RunFolder::file_of(const std::string& unit) const { return folder_ / (unit + kSuffix); }

bool RunFolder::has(const std::string& unit) const { return active_ && fs::exists(file_of(unit)); }

std::optional<RunFolder::Unit> RunFolder::load(const std::string& unit) const {
  if (!has(unit)) return std::nullopt;
  try {
    auto sealed = checkpoint::read_sealed(file_of(unit));
    return Unit{std::move(sealed.tensors), std::move(sealed.meta)};
  } catch (const checkpoint::Damaged&) {
    fail("run", "{}: has changed since it was written; give the same command again and it is computed again", file_of(unit).string());
  }
}

RunFolder::Unit RunFolder::need(const std::string& unit) const {
  auto found = load(unit);
  if (!found) fail("run", "{}: is gone; give the same command again and it is computed again", file_of(unit).string());
  return std::move(*found);
}

void RunFolder::save(const std::string& unit, const std::unordered_map<std::string, mx::array>& tensors, const json& meta) {
  if (active_) checkpoint::write_sealed(file_of(unit), tensors, meta);
}

void RunFolder::drop(const std::string& unit) {
  std::error_code ignored;
  if (active_) fs::remove(file_of(unit), ignored);
}

fs::path RunFolder::step(const std::string& step) const { return folder_ / kSteps / step; }

bool RunFolder::has_step(const std::string& name) const { return active_ && fs::exists(step(name)); }

fs::path RunFolder::begin_step(const std::string& name) {
  std::error_code ec;
  fs::create_directories(folder_ / kSteps, ec);
  if (ec) fail("run", "{}: cannot be made ({}); free space on that disk", (folder_ / kSteps).string(), ec.message());
  const auto place = step(name).string() + ".new";
  // Whole, but killed before it became a step: nothing vouches for its bytes.
  fs::remove_all(place);
  return place;
}

void RunFolder::finish_step(const std::string& name, const json& meta) {
  const auto place = step(name);
  save(kStepUnit + name, {}, {{"files", digests(place.string() + ".new")}, {"meta", meta}});
  std::error_code ec;
  fs::rename(place.string() + ".new", place, ec);
  if (ec) fail("run", "{}: cannot be given its name ({}); give the same command again", place.string(), ec.message());
  sync_path("run", place.parent_path());
}

json RunFolder::step_meta(const std::string& name) const { return need(kStepUnit + name).meta.at("meta"); }

void RunFolder::remove() {
  if (!active_) return;
  active_ = false;  // whatever appears under that name from now on is another run's
  std::error_code ec;
  const auto away = removed_name(folder_);
  if (find_foreign(folder_, true)) {  // somebody has put something there: it stays, and so does the folder
    remove_contents(folder_);
    return;
  }
  fs::remove_all(away, ec);
  fs::rename(folder_, away, ec);
  if (!ec) fs::remove_all(away, ec);
}

}  // namespace lquant::run
