#include "base/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/json.h"
#include "base/links.h"

namespace lquant {
namespace fs = std::filesystem;

std::string read_file(const char* room, const fs::path& path, std::size_t limit) {
  check_regular(room, path);
  std::error_code ec;
  const auto size = fs::file_size(path, ec);
  if (ec) fail(room, "{}: cannot be read ({}); check the path", path.string(), ec.message());
  if (size > limit) fail(room, "{}: {} bytes is more than the {} such a file may have", path.string(), size, limit);
  std::ifstream in(path, std::ios::binary);
  std::string bytes(size, '\0');
  if (!in.read(bytes.data(), static_cast<std::streamsize>(size))) fail(room, "{}: cannot be read; check its permissions", path.string());
  return bytes;
}

namespace {

// The largest there are, indexes of a trillion parameters and tokens' sensitivities, have some 30 MB.
constexpr std::size_t kLargestJson = std::size_t{1} << 28;

nlohmann::json parsed(const char* room, const fs::path& path, std::string_view text) {
  try {
    return parse_json(text);
  } catch (const JsonFault& fault) {
    fail(room, "{}: not valid JSON ({}); download or write the file again", path.string(), fault.what());
  }
}

}  // namespace

nlohmann::json read_json(const char* room, const fs::path& path) { return parsed(room, path, read_file(room, path, kLargestJson)); }

nlohmann::json read_config_json(const char* room, const fs::path& path) {
  return parsed(room, path, with_tagged_floats(read_file(room, path, kLargestJson)));
}

namespace {

class File {
 public:
  File(const char* room, const fs::path& path, int flags) : room_(room), path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (fd_ < 0) complain("opened");
  }
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) complain("written");
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
  }
  void sync() {
    if (::fsync(fd_) != 0 && errno != EINVAL && errno != ENOTSUP) complain("flushed to disk");
  }

 private:
  [[noreturn]] void complain(const char* what) {
    fail(room_, "{}: cannot be {} ({}); free space or pick another folder", path_.string(), what, std::strerror(errno));
  }
  const char* room_;
  fs::path path_;
  int fd_;
};

}  // namespace

void sync_path(const char* room, const fs::path& path) { File(room, path, O_RDONLY).sync(); }

void write_file_atomically(const char* room, const fs::path& path, std::string_view bytes) {
  const fs::path partial = path.string() + ".partial";
  try {
    File file(room, partial, O_WRONLY | O_CREAT | O_TRUNC);
    file.write(bytes);
    file.sync();
    fs::rename(partial, path);
  } catch (const fs::filesystem_error& e) {
    fs::remove(partial);
    fail(room, "{}: cannot be written ({}); free space or pick another folder", path.string(), e.code().message());
  } catch (...) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    throw;
  }
  sync_path(room, path.has_parent_path() ? path.parent_path() : fs::path("."));
}

}  // namespace lquant
