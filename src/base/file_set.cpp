#include "base/file_set.h"

#include <mutex>

#include "base/error.h"
#include "base/files.h"
#include "base/links.h"

namespace lquant {
namespace fs = std::filesystem;

struct FileSet::Memory {
  std::mutex mutex;
  std::map<std::string, Make> makers;
  std::map<std::string, std::string> made;
};

FileSet FileSet::of_folder(fs::path path) {
  FileSet files;
  files.place_ = std::move(path);
  return files;
}

FileSet FileSet::of_memory(fs::path origin, std::map<std::string, Make> makers) {
  FileSet files;
  files.place_ = std::move(origin);
  files.memory_ = std::make_shared<Memory>();
  files.memory_->makers = std::move(makers);
  return files;
}

bool FileSet::has(const std::string& name) const {
  return memory_ ? memory_->makers.contains(name) : has_entry(place_, name);
}

std::optional<std::string> FileSet::read(const char* room, const std::string& name, std::size_t limit) const {
  if (!memory_) return find_file(room, place_, name) ? std::optional(read_file(room, place_ / name, limit)) : std::nullopt;
  if (!has(name)) return std::nullopt;
  const std::lock_guard lock(memory_->mutex);
  auto made = memory_->made.find(name);
  if (made == memory_->made.end()) made = memory_->made.emplace(name, memory_->makers.at(name)()).first;
  if (made->second.size() > limit) fail(room, "{}: {} bytes is more than the {} such a file may have", label(name), made->second.size(), limit);
  return made->second;
}

std::string FileSet::label(const std::string& name) const {
  return memory_ ? fmt::format("{} ({})", place_.string(), name) : (place_ / name).string();
}

std::string FileSet::label() const { return place_.string(); }

}  // namespace lquant
