// The name of the partial folder is fixed, so that a killed run's gigabytes are found and removed by the next. That needs a lock, and
// the lock lies outside of the folder that is renamed: a file that must vanish from the result would leave a moment in which it is
// neither whole nor gone.
#include "checkpoint/partial_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/files.h"

namespace lquant::checkpoint {
namespace fs = std::filesystem;

namespace {

// Anything counts, even a link that leads nowhere: it is not ours to replace.
void refuse_existing(const fs::path& output) {
  std::error_code ignored;
  if (fs::exists(fs::symlink_status(output, ignored))) fail("checkpoint", "{}: exists; choose another --mlx-path or remove it", output.string());
}

fs::path final_place(const fs::path& output) {
  auto place = fs::absolute(output).lexically_normal();
  if (place.filename().empty()) place = place.parent_path();  // "out/" means "out"
  if (place.filename().empty()) fail("checkpoint", "{}: is not a name for a new folder; choose another --mlx-path", output.string());
  return place;
}

// What a killed run leaves is "lock" and "output", and never the second without the first. Anything else is somebody's own.
void refuse_foreign(const fs::path& partial) {
  std::error_code ignored;
  bool lock = false, other = false;
  for (const auto& entry : fs::directory_iterator(partial, ignored)) {
    lock |= entry.path().filename() == "lock";
    other |= entry.path().filename() != "lock" && entry.path().filename() != "output";
  }
  if (other || (!lock && fs::exists(partial / "output", ignored))) {
    fail("checkpoint", "{}: is in the way, and was not made by lquant; move it away", partial.string());
  }
}

bool is_same_file(int descriptor, const fs::path& path) {
  struct stat held {
  }, named{};
  return ::fstat(descriptor, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

}  // namespace

PartialFolder::PartialFolder(const fs::path& output)
    : output_(final_place(output)),
      partial_(output_.parent_path() / fmt::format(".{}.partial", output_.filename().string())),
      inside_(partial_ / "output") {
  refuse_existing(output_);
  try {
    take_lock();
    refuse_existing(output_);  // the run that held the lock before us may have published just now
    fs::remove_all(inside_);
    fs::create_directory(inside_);
  } catch (const fs::filesystem_error& e) {
    clear();
    fail("checkpoint", "{}: cannot be made ({}); choose another --mlx-path", e.path1().string(), e.code().message());
  } catch (...) {
    clear();
    throw;
  }
}

// Opening and locking are two steps, and between them the holder may finish and remove the file; then what we locked is a file
// without a name, and we begin anew.
void PartialFolder::take_lock() {
  const auto path = partial_ / "lock";
  for (;;) {
    fs::create_directories(partial_);
    refuse_foreign(partial_);
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0 && errno == ENOENT) continue;
    if (descriptor < 0) fail("checkpoint", "{}: cannot be made ({}); choose another --mlx-path", path.string(), std::strerror(errno));
    // Some network file systems know no locks; there we go without rather than not at all.
    if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(descriptor);
      fail("checkpoint", "{}: is being written by another run; wait for it or choose another --mlx-path", output_.string());
    }
    if (is_same_file(descriptor, path)) {
      lock_ = descriptor;
      return;
    }
    ::close(descriptor);
  }
}

void PartialFolder::clear() {
  if (lock_ < 0) return;  // without the lock nothing here is ours
  std::error_code ignored;
  fs::remove_all(inside_, ignored);
  fs::remove(partial_ / "lock", ignored);
  fs::remove(partial_, ignored);  // only when empty
  ::close(lock_);
  lock_ = -1;
}

PartialFolder::~PartialFolder() { clear(); }

void PartialFolder::publish() {
  refuse_existing(output_);
  std::error_code error;
  fs::rename(inside_, output_, error);
  if (error) fail("checkpoint", "{}: cannot be given its name ({}); choose another --mlx-path", output_.string(), error.message());
  clear();
  sync_path("checkpoint", output_.parent_path());
}

}  // namespace lquant::checkpoint
