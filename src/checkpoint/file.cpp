#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/links.h"

namespace lquant::checkpoint {
namespace {

// macOS refuses a single read or write of 2^31 bytes and Linux cuts it short; a quarter of that costs no speed.
constexpr std::size_t kLargestCall = std::size_t{1} << 29;
// Big enough that the call's cost vanishes beside hashing, small enough to stay in the second-level cache.
constexpr std::size_t kHashBlock = std::size_t{1} << 20;

}  // namespace

File::File(std::filesystem::path path, int descriptor, std::uint64_t size) : path_(std::move(path)), descriptor_(descriptor), size_(size) {}

File::File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File File::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a named pipe would otherwise wait for a writer for ever. It means nothing for regular files.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail("checkpoint", "{}: cannot be opened ({}); check the path and its permissions", path.string(), std::strerror(errno));
  File file(path, descriptor, 0);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode))
    fail("checkpoint", "{}: is not a regular file; put the real file there", path.string());
  file.size_ = static_cast<std::uint64_t>(status.st_size);
#ifdef POSIX_FADV_SEQUENTIAL
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);  // doubles the read-ahead; only advice, so its result does not matter
#endif
  return file;
}

File File::open(const std::filesystem::path& folder, const std::string& name) {
  const auto place = find_file("checkpoint", folder, name);
  auto file = open(place.value_or(folder / name));
  file.path_ = folder / name;
  return file;
}

File File::create(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) fail("checkpoint", "{}: cannot be created ({}); choose another --mlx-path", path.string(), std::strerror(errno));
  return File(path, descriptor, 0);
}

void File::read(std::uint64_t begin, void* data, std::size_t size) const {
  auto* out = static_cast<char*>(data);
  while (size > 0) {
    const auto n = ::pread(descriptor_, out, std::min(size, kLargestCall), static_cast<off_t>(begin));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("checkpoint", "{}: cannot be read ({}); check the disk", path_.string(), std::strerror(errno));
    if (n == 0)
      fail("checkpoint", "{}: ends at byte {}, before its data does; it was cut short while in use: download it again", path_.string(), begin);
    out += n;
    begin += static_cast<std::uint64_t>(n);
    size -= static_cast<std::size_t>(n);
  }
}

void File::append(const void* data, std::size_t size) {
  const auto* in = static_cast<const char*>(data);
  while (size > 0) {
    const auto n = ::write(descriptor_, in, std::min(size, kLargestCall));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("checkpoint", "{}: cannot be written ({}); free space or choose another --mlx-path", path_.string(), std::strerror(errno));
    in += n;
    size_ += static_cast<std::uint64_t>(n);
    size -= static_cast<std::size_t>(n);
  }
}

void File::sync() {
  // Some file systems (FUSE, network mounts) cannot sync a file and say EINVAL; there is nothing to be done about it.
  if (::fsync(descriptor_) != 0 && errno != EINVAL && errno != ENOTSUP) {
    fail("checkpoint", "{}: cannot be flushed to the disk ({}); free space or choose another --mlx-path", path_.string(), std::strerror(errno));
  }
#ifdef POSIX_FADV_DONTNEED
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
#endif
}

std::string sha256_from(const File& file, std::uint64_t begin, std::uint64_t end) {
  end = std::min(end, file.size());
  Sha256 hash;
  std::vector<char> block(static_cast<std::size_t>(std::min<std::uint64_t>(kHashBlock, end - std::min(begin, end))));
  while (begin < end) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), end - begin));
    file.read(begin, block.data(), n);
    hash.update(block.data(), n);
    begin += n;
  }
  return hash.hex();
}

}  // namespace lquant::checkpoint
