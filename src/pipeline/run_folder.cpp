// A run is described by its identity; its progress is a set of named units, each one file written under another name, synced
// and renamed. A kill at any moment leaves the units finished until then, and nothing else matters.
#include "pipeline/run_folder.h"

#include <fcntl.h>
#include <mlx/mlx.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <csignal>

#include "base/error.h"
#include "base/files.h"

namespace lquant::pipeline {
namespace fs = std::filesystem;
namespace mx = mlx::core;
using json = nlohmann::json;

namespace {

/// "bits (4, now 3), data" for the keys in which two identities differ.
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

}  // namespace

fs::path RunFolder::folder_of(const fs::path& output) {
  auto name = output.lexically_normal();
  if (!name.has_filename()) name = name.parent_path();
  return name.string() + ".lquant-run";
}

RunFolder::RunFolder(const fs::path& output, json identity, bool fresh, bool active) : folder_(folder_of(output)), active_(active) {
  if (!active_) return;
  std::error_code ec;
  fs::create_directories(folder_, ec);
  if (ec) fail("pipeline", "{}: cannot be made ({}); pick another place for the output", folder_.string(), ec.message());
  lock_.descriptor = ::open((folder_ / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_.descriptor < 0 || ::flock(lock_.descriptor, LOCK_EX | LOCK_NB) != 0)
    fail("pipeline", "{}: another run is working there; wait for it or pick another place for the output", folder_.string());
  const auto journal = folder_ / "journal.json";
  if (fresh) {
    for (const auto& entry : fs::directory_iterator(folder_))
      if (entry.path().filename() != "lock") fs::remove_all(entry.path());
  }
  // Compared as written: a number read back from JSON is the number that was written.
  identity = json::parse(identity.dump());
  // A run that finished no unit (its data could not be read, say) has nothing that another run could spoil.
  if (fs::exists(journal) && holds_units()) {
    const auto before = read_json("pipeline", journal);
    if (before != identity)
      fail("pipeline", "{}: left by a run that differs in {}; repeat that command to continue it, or add --fresh to start over", folder_.string(),
           differences(before, identity));
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (entry.path().extension() == ".partial" || entry.path().string().ends_with(".partial.safetensors"))
        fs::remove(entry.path());
      else if (entry.path().extension() == ".safetensors")
        resumed_ = true;
    }
  } else {
    write_file_atomically("pipeline", journal, identity.dump(1) + "\n");
  }
}

RunFolder::Lock::~Lock() {
  if (descriptor >= 0) ::close(descriptor);
}

RunFolder::~RunFolder() {
  if (active_ && !holds_units()) remove();
}

bool RunFolder::holds_units() const {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_, ignored))
    if (entry.path().extension() == ".safetensors" && !entry.path().string().ends_with(".partial.safetensors")) return true;
  return false;
}

bool RunFolder::has(const std::string& unit) const { return active_ && fs::exists(folder_ / (unit + ".safetensors")); }

std::optional<RunFolder::Unit> RunFolder::load(const std::string& unit) const {
  if (!has(unit)) return std::nullopt;
  const auto file = folder_ / (unit + ".safetensors");
  try {
    auto [tensors, metadata] = mx::load_safetensors(file.string(), mx::default_stream(mx::Device::cpu));
    std::vector<mx::array> all;
    for (auto& [name, tensor] : tensors) all.push_back(tensor);
    mx::eval(all);  // read now: the file may be replaced before anyone looks
    Unit result{std::move(tensors), json::parse(metadata.at("lquant"))};
    result.tensors.erase("lquant.empty");
    return result;
  } catch (const std::exception& e) {
    fail("pipeline", "{}: cannot be read ({}); add --fresh to start over", file.string(), e.what());
  }
}

void RunFolder::save(const std::string& unit, const model::Tensors& tensors, const json& meta) {
  if (!active_) return;
  const auto file = folder_ / (unit + ".safetensors"), partial = folder_ / (unit + ".partial.safetensors");
  try {
    auto held = tensors;
    if (held.empty()) held.insert({"lquant.empty", mx::array({0.0f})});
    mx::save_safetensors(partial.string(), held, {{"lquant", meta.dump()}});
    sync_path("pipeline", partial);
    fs::rename(partial, file);
    sync_path("pipeline", folder_);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    fail("pipeline", "{}: cannot be written ({}); free space on that disk and give the same command again", file.string(), e.what());
  }
}

void RunFolder::drop(const std::string& unit) {
  std::error_code ignored;
  if (active_) fs::remove(folder_ / (unit + ".safetensors"), ignored);
}

void RunFolder::remove() {
  if (!active_) return;
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
  active_ = false;  // whatever appears under that name from now on is another run's
}

namespace {
std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "the signal handler may touch lock-free atomics alone");

extern "C" void on_interrupt(int signal) {
  if (interrupted.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}
}  // namespace

InterruptGuard::InterruptGuard() {
  interrupted = false;
  std::signal(SIGINT, on_interrupt);
  std::signal(SIGTERM, on_interrupt);
}

InterruptGuard::~InterruptGuard() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

bool InterruptGuard::requested() { return interrupted; }

}  // namespace lquant::pipeline
