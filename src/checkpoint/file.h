#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace lquant::checkpoint {

/// One open regular file, read at explicit places or appended to. Reading copies with pread instead of mapping: pages of the
/// file never count as this process's memory, and a file that shrinks under us is an Error and no SIGBUS.
/// Every failure is an Error that names the path; see the functions for which.
class File {
 public:
  /// An existing file. Throws when it is not there, not readable, or no regular file (a folder, a pipe).
  static File open(const std::filesystem::path& path);
  /// A file of a model folder, called "folder/name". Throws also when it is a link that leads out of the folder (see find_file).
  static File open(const std::filesystem::path& folder, const std::string& name);
  /// A new file to append to. Throws when the path exists or cannot be made.
  static File create(const std::filesystem::path& path);

  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  /// Bytes in the file: as found by open(), or as appended so far.
  std::uint64_t size() const { return size_; }

  /// Copies bytes [begin, begin + size) to `data`. Throws when the file ends before or the disk fails. Safe from many threads.
  void read(std::uint64_t begin, void* data, std::size_t size) const;
  /// Throws when the disk is full, a quota is reached, ….
  void append(const void* data, std::size_t size);
  void append(std::string_view text) { append(text.data(), text.size()); }
  /// fsync, then asks the system to forget its cached pages, so that what is read next comes from the disk.
  void sync();

 private:
  File(std::filesystem::path path, int descriptor, std::uint64_t size);
  std::filesystem::path path_;
  int descriptor_;
  std::uint64_t size_;
};

/// SHA-256 in hexadecimal of a file's bytes [begin, end), as far as it has them.
std::string sha256_from(const File& file, std::uint64_t begin, std::uint64_t end = UINT64_MAX);

}  // namespace lquant::checkpoint
